//! Convolutions of 8-bit integers, against integers of 64 bits and the CPU.

use super::check::{Graph, Random};
use mortise_compute::{CpuDevice, CpuOptions};
use mortise_types::{Attribute, DType, Tensor};

struct Case {
    image: &'static [usize],
    filters: &'static [usize],
    group: usize,
    strides: [usize; 2],
    dilations: [usize; 2],
    pads: [usize; 4],
}

const fn case(image: &'static [usize], filters: &'static [usize], group: usize) -> Case {
    Case { image, filters, group, strides: [1; 2], dilations: [1; 2], pads: [0; 4] }
}

const CASES: &[Case] = &[
    case(&[1, 1, 1, 1], &[1, 1, 1, 1], 1),
    Case { pads: [1; 4], ..case(&[2, 3, 9, 7], &[33, 3, 3, 3], 1) },
    Case { strides: [2, 2], pads: [3; 4], ..case(&[1, 3, 33, 33], &[16, 3, 7, 7], 1) },
    Case { pads: [1, 0, 2, 1], dilations: [2, 1], ..case(&[2, 14, 7, 9], &[18, 7, 3, 2], 2) },
    case(&[1, 129, 5, 5], &[129, 129, 1, 1], 1),
    Case { strides: [2, 1], pads: [1; 4], ..case(&[2, 7, 8, 8], &[14, 1, 3, 3], 7) },
    Case { pads: [2, 2, 2, 2], ..case(&[1, 6, 5, 4], &[6, 2, 3, 3], 3) },
    // Outputs enough for the large tiles.
    Case { pads: [1; 4], ..case(&[1, 9, 65, 65], &[65, 9, 3, 3], 1) },
];

fn bytes(random: &mut Random, shape: &[usize], signed: bool) -> Tensor {
    let bytes = random.bytes(shape);
    match signed {
        true => Tensor::from_vec(shape, bytes.iter().map(|b| *b as i8).collect()).unwrap(),
        false => Tensor::from_vec(shape, bytes).unwrap(),
    }
}

fn wide(tensor: &Tensor) -> Vec<i64> {
    let signed = tensor.dtype() == DType::I8;
    let value = |byte: &u8| if signed { i64::from(*byte as i8) } else { i64::from(*byte) };
    tensor.bytes().unwrap_or_default().iter().map(value).collect()
}

impl Case {
    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        let list =
            |values: &[usize]| Attribute::Ints(values.iter().map(|value| *value as i64).collect());
        vec![
            ("group", Attribute::Int(self.group as i64)),
            ("strides", list(&self.strides)),
            ("dilations", list(&self.dilations)),
            ("pads", list(&self.pads)),
        ]
    }

    fn output(&self) -> [usize; 2] {
        [0, 1].map(|axis| {
            let extent = self.dilations[axis] * (self.filters[axis + 2] - 1) + 1;
            let padded = self.image[axis + 2] + self.pads[axis] + self.pads[axis + 2];
            (padded - extent) / self.strides[axis] + 1
        })
    }

    /// Sums, of one zero point for the image and one an output.
    fn sums(&self, x: &[i64], w: &[i64], x_zero: i64, w_zeros: &[i64]) -> Vec<i64> {
        let [rows, columns] = self.output();
        let (outputs, positions) = (self.filters[0], rows * columns);
        let count = self.image[0] * outputs * positions;
        let sum = |at: usize| {
            let (plane, position) = (at / positions, at % positions);
            let (batch, output) = (plane / outputs, plane % outputs);
            let corner = [position / columns, position % columns];
            self.sum([x, w], [x_zero, w_zeros[output]], [batch, output], corner)
        };
        (0..count).map(sum).collect()
    }

    fn sum(
        &self,
        [x, w]: [&[i64]; 2],
        [x_zero, w_zero]: [i64; 2],
        [batch, output]: [usize; 2],
        corner: [usize; 2],
    ) -> i64 {
        let [_, all, height, width] = *self.image else { return 0 };
        let [outputs, channels, kernel_y, kernel_x] = *self.filters else { return 0 };
        let first = output / (outputs / self.group) * channels;
        let mut sum = 0;
        for tap in 0..channels * kernel_y * kernel_x {
            let (channel, ky, kx) =
                (tap / (kernel_y * kernel_x), tap / kernel_x % kernel_y, tap % kernel_x);
            let place = |axis: usize, tap: usize| {
                let at = corner[axis] * self.strides[axis] + tap * self.dilations[axis];
                at.checked_sub(self.pads[axis]).filter(|at| *at < [height, width][axis])
            };
            let (Some(y), Some(x_at)) = (place(0, ky), place(1, kx)) else { continue };
            let pixel = x[((batch * all + first + channel) * height + y) * width + x_at];
            sum += (pixel - x_zero) * (w[output * channels * kernel_y * kernel_x + tap] - w_zero);
        }
        sum
    }
}

fn dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|dim| *dim as i64).collect()
}

/// Against integers of 64 bits, with all zero points, with one and with none.
#[test]
fn integer_convolutions_are_exact() {
    let mut random = Random::new();
    for case in CASES {
        for (x_signed, w_signed) in [(false, true), (true, false), (false, false), (true, true)] {
            exact(&mut random, case, x_signed, w_signed);
        }
    }
}

fn exact(random: &mut Random, case: &Case, x_signed: bool, w_signed: bool) {
    let outputs = case.filters[0];
    let dtype = if x_signed { DType::I8 } else { DType::U8 };
    let (x, w) = (bytes(random, case.image, x_signed), bytes(random, case.filters, w_signed));
    let (x_zero, w_zeros) = (bytes(random, &[], x_signed), bytes(random, &[outputs], w_signed));
    let w_zero = bytes(random, &[1], w_signed);
    let mut graph = Graph::default();
    let input = graph.input(dtype, &dims(case.image));
    let filters = graph.constant(w.clone());
    let zero = graph.constant(x_zero.clone());
    let zeros = [w_zeros.clone(), w_zero.clone()].map(|zeros| graph.constant(zeros));
    let calls = [
        vec![input, filters, zero, zeros[0]],
        vec![input, filters, zero, zeros[1]],
        vec![input, filters, zero],
        vec![input, filters],
    ];
    for inputs in calls {
        let y = graph.node("ConvInteger", &inputs, &case.attributes());
        graph.output(y);
    }
    let on_gpu = graph.run_unplanned(std::slice::from_ref(&x));
    let cpu = CpuDevice::new(CpuOptions { threads: 1 });
    let on_cpu = graph.run_on(&*cpu, std::slice::from_ref(&x)).unwrap();
    let [x, w, x_zero, w_zeros, w_zero] = [x, w, x_zero, w_zeros, w_zero].map(|t| wide(&t));
    let none = vec![0; outputs];
    let shared = vec![w_zero[0]; outputs];
    let zeros = [(x_zero[0], &w_zeros), (x_zero[0], &shared), (x_zero[0], &none), (0, &none)];
    for (at, (x_zero, w_zeros)) in zeros.into_iter().enumerate() {
        let want = case.sums(&x, &w, x_zero, w_zeros);
        for (device, got) in [("GPU", &on_gpu[at]), ("CPU", &on_cpu[at])] {
            let got: Vec<i64> =
                got.as_slice::<i32>().unwrap().iter().map(|sum| i64::from(*sum)).collect();
            let label = format!("{:?} {:?} {x_signed} {w_signed}", case.image, case.filters);
            let wrong = got.iter().zip(&want).position(|(got, want)| got != want);
            assert_eq!(wrong, None, "{label}, call {at} on the {device}");
        }
    }
}

#[test]
fn linear_convolutions_are_within_one_step() {
    let mut random = Random::new();
    for case in CASES {
        for (signed, by_channel, with_bias) in
            [(false, false, false), (true, true, true), (false, true, true)]
        {
            linear(&mut random, case, [signed, by_channel, with_bias]);
        }
    }
}

fn linear(random: &mut Random, case: &Case, [signed, by_channel, with_bias]: [bool; 3]) {
    let outputs = case.filters[0];
    let scales = if by_channel { outputs } else { 1 };
    let dtype = if signed { DType::I8 } else { DType::U8 };
    let x = bytes(random, case.image, signed);
    let mut graph = Graph::default();
    let input = graph.input(dtype, &dims(case.image));
    let w = bytes(random, case.filters, signed);
    let zeros = match signed {
        true => Tensor::from_vec(&[scales], vec![0i8; scales]).unwrap(),
        false => bytes(random, &[scales], signed),
    };
    let terms = case.filters[1..].iter().product::<usize>() as f32;
    let scale = random.floats(&[scales]);
    let scale = scale.as_slice::<f32>().unwrap().iter().map(|scale| scale.abs() + 0.1);
    let scale = Tensor::from_vec(&[scales], scale.collect::<Vec<f32>>()).unwrap();
    let mut inputs = vec![input];
    let y_scale = Tensor::scalar(0.02 * 80.0 * terms.sqrt());
    let rest = [
        Tensor::scalar(0.02f32),
        bytes(random, &[], signed),
        w,
        scale,
        zeros,
        y_scale,
        bytes(random, &[], signed),
    ];
    inputs.extend(rest.map(|tensor| graph.constant(tensor)));
    if with_bias {
        let bias = random.indices(&[outputs], 20_000);
        let bias = bias.as_slice::<i64>().unwrap().iter().map(|bias| *bias as i32 - 10_000);
        let bias = Tensor::from_vec(&[outputs], bias.collect::<Vec<i32>>()).unwrap();
        inputs.push(graph.constant(bias));
    }
    let y = graph.node("QLinearConv", &inputs, &case.attributes());
    graph.output(y);
    let cpu = CpuDevice::new(CpuOptions { threads: 1 });
    let want = wide(&graph.run_on(&*cpu, std::slice::from_ref(&x)).unwrap()[0]);
    let served = graph.run_on(&*super::device(), std::slice::from_ref(&x)).unwrap();
    assert!(graph.left_to_cpu(std::slice::from_ref(&x)).is_empty(), "left to the CPU");
    for got in [served, graph.run_unplanned(&[x])] {
        let got = wide(&got[0]);
        let steps = got.iter().zip(&want).map(|(got, want)| (got - want).abs());
        let off = steps.clone().filter(|steps| *steps > 0).count();
        let label = format!("{:?} {:?} {signed} {by_channel}", case.image, case.filters);
        assert_eq!(got.len(), want.len(), "{label}");
        assert!(steps.max().unwrap_or(0) <= 1, "{label}: off by more than a step");
        assert!(off * 100 <= want.len(), "{label}: {off} of {} off by a step", want.len());
    }
}

/// Signals of one dimension, padding by name, and integers that go on as floats.
#[test]
fn integer_convolutions_within_a_graph_agree() {
    let mut random = Random::new();
    let mut graph = Graph::default();
    let x = graph.input(DType::F32, &[-1, 5, 33]);
    let parts = graph.nodes("", "DynamicQuantizeLinear", &[x], &[], 3);
    let w = graph.constant(bytes(&mut random, &[9, 5, 4], true));
    let pad = ("auto_pad", Attribute::String(b"SAME_UPPER".to_vec()));
    let strides = ("strides", Attribute::Ints(vec![2]));
    let sums = graph.node("ConvInteger", &[parts[0], w, parts[2]], &[pad, strides]);
    let to = ("to", Attribute::Int(i64::from(DType::F32.onnx())));
    let floats = graph.node("Cast", &[sums], &[to]);
    let y = graph.node("Mul", &[floats, parts[1]], &[]);
    graph.output(y);
    // A value on the edge may be rounded the other way: one step of 255.
    graph.agrees_on_device("signals", &[random.floats(&[3, 5, 33])], 2e-2);
}

/// What a node makes on the device may be read by one that the CPU runs.
#[test]
fn quantised_answers_cross_to_the_cpu() {
    let mut random = Random::new();
    let case = &CASES[1];
    let mut graph = Graph::default();
    let x = graph.input(DType::U8, &dims(case.image));
    let w = graph.constant(bytes(&mut random, case.filters, true));
    let scale = graph.constant(Tensor::scalar(0.02f32));
    let y_scale = graph.constant(Tensor::scalar(16f32));
    let zero = graph.constant(Tensor::scalar(0i8));
    let point = graph.constant(Tensor::scalar(9u8));
    let sums = graph.node("ConvInteger", &[x, w], &case.attributes());
    let inputs = [x, scale, point, w, scale, zero, y_scale, point];
    let steps = graph.node("QLinearConv", &inputs, &case.attributes());
    for value in [sums, steps] {
        // Reversing sequences has no kernel.
        let lengths = graph.ints(&[9, 9]);
        let turned = graph.node(
            "ReverseSequence",
            &[value, lengths],
            &[("batch_axis", Attribute::Int(0)), ("time_axis", Attribute::Int(1))],
        );
        graph.output(turned);
    }
    let image = [bytes(&mut random, case.image, false)];
    assert_eq!(graph.left_to_cpu(&image), ["ReverseSequence"; 2]);
    graph.agrees_as("crossing", &image, 0.0);
}
