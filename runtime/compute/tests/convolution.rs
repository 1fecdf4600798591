//! Convolutions that are computed in a roundabout way, against the definition
//! in f64.

mod graphs;

use graphs::{Builder, floats, ramp};
use mortise_types::{Attribute, DType};

/// Height, width, and the pads above, on the left, below and on the right.
struct Case {
    size: [usize; 2],
    pads: [usize; 4],
}

const INPUTS: usize = 33;
const OUTPUTS: usize = 35;

fn by_definition(case: &Case, image: &[f32], weights: &[f32], bias: &[f32]) -> Vec<f64> {
    let ([height, width], [top, left, bottom, right]) = (case.size, case.pads);
    let (high, wide) = (height + top + bottom - 2, width + left + right - 2);
    let mut sums = Vec::new();
    for (output, y, x) in (0..OUTPUTS)
        .flat_map(|output| (0..high).map(move |y| (output, y)))
        .flat_map(|(output, y)| (0..wide).map(move |x| (output, y, x)))
    {
        let mut sum = f64::from(bias[output]);
        for tap in 0..INPUTS * 9 {
            let (channel, row, column) = (tap / 9, y + tap % 9 / 3, x + tap % 3);
            let inside =
                (top..top + height).contains(&row) && (left..left + width).contains(&column);
            if inside {
                let at = (channel * height + row - top) * width + column - left;
                sum += f64::from(image[at]) * f64::from(weights[output * INPUTS * 9 + tap]);
            }
        }
        sums.push(sum);
    }
    sums
}

fn check(case: &Case, image: &[f32]) {
    let weights = ramp(OUTPUTS * INPUTS * 9);
    let bias = ramp(OUTPUTS);
    let [height, width] = case.size;
    let mut graph = Builder::default();
    let x = graph.input("x", DType::F32, &[-1, INPUTS as i64, height as i64, width as i64]);
    let w = graph.constant(&[OUTPUTS, INPUTS, 3, 3], weights.clone());
    let b = graph.constant(&[OUTPUTS], bias.clone());
    let pads = Attribute::Ints(case.pads.iter().map(|&pad| pad as i64).collect());
    let y = graph.node_with("Conv", &[x, w, b], &[("pads", pads)]);
    graph.output("y", y);
    let batch = [image, image].concat();
    let output = graph.run(vec![floats(&[2, INPUTS, height, width], &batch)]).unwrap().remove(0);
    let want = by_definition(case, image, &weights, &bias);
    let got = output.as_slice::<f32>().unwrap();
    assert_eq!(got.len(), 2 * want.len());
    for (index, (got, want)) in got.iter().zip(want.iter().chain(&want)).enumerate() {
        let got = f64::from(*got);
        let same = (got - want).abs() <= 1e-4 || got == *want || got.is_nan() && want.is_nan();
        assert!(same, "{:?}: element {index} is {got} instead of {want}", case.size);
    }
}

#[test]
fn odd_sizes_and_pads_agree_with_the_definition() {
    for (size, pads) in [
        ([14, 14], [1, 1, 1, 1]),
        ([13, 17], [1, 1, 1, 1]),
        ([15, 16], [0, 0, 0, 0]),
        ([16, 13], [0, 2, 1, 0]),
        ([5, 40], [3, 4, 2, 1]),
    ] {
        let image = ramp(INPUTS * size[0] * size[1]);
        check(&Case { size, pads }, &image);
    }
}

#[test]
fn infinity_and_nan_stay_where_the_definition_has_them() {
    for value in [f32::INFINITY, f32::NAN] {
        let mut image = ramp(INPUTS * 14 * 14);
        image[14 * 7 + 5] = value;
        check(&Case { size: [14, 14], pads: [1; 4] }, &image);
    }
}
