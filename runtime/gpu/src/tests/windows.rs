//! Convolution and pooling.

use super::check::{Graph, Random};
use mortise_types::{Attribute, DType, Tensor};

/// Sums of up to a few hundred terms.
const F32: f32 = 5e-5;

struct Case {
    image: &'static [usize],
    filters: &'static [usize],
    group: i64,
    attributes: &'static [(&'static str, &'static [i64])],
}

const CASES: &[Case] = &[
    Case { image: &[2, 3, 9, 7], filters: &[5, 3, 3, 3], group: 1, attributes: &[] },
    Case {
        image: &[1, 3, 33, 33],
        filters: &[33, 3, 7, 7],
        group: 1,
        attributes: &[("strides", &[2, 2]), ("pads", &[3, 3, 3, 3])],
    },
    Case {
        image: &[2, 8, 7, 9],
        filters: &[12, 4, 3, 2],
        group: 2,
        attributes: &[("pads", &[1, 0, 2, 1]), ("dilations", &[2, 1])],
    },
    Case { image: &[1, 16, 5, 5], filters: &[129, 16, 1, 1], group: 1, attributes: &[] },
    Case {
        image: &[2, 7, 8, 8],
        filters: &[14, 1, 3, 3],
        group: 7,
        attributes: &[("pads", &[1, 1, 1, 1]), ("strides", &[2, 1])],
    },
    Case {
        image: &[2, 5, 33],
        filters: &[7, 5, 4],
        group: 1,
        attributes: &[("pads", &[1, 2]), ("strides", &[3])],
    },
];

fn dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|dim| *dim as i64).collect()
}

#[test]
fn convolutions_agree() {
    let mut random = Random::new();
    for case in CASES {
        let mut graph = Graph::default();
        let x = graph.input(DType::F32, &dims(case.image));
        let w = graph.constant(random.floats(case.filters));
        let bias = graph.constant(random.floats(&case.filters[..1]));
        let mut attributes = vec![("group", Attribute::Int(case.group))];
        let lists = case.attributes.iter();
        attributes.extend(lists.map(|(name, list)| (*name, Attribute::Ints(list.to_vec()))));
        let y = graph.node("Conv", &[x, w, bias], &attributes);
        let plain = graph.node("Conv", &[x, w], &attributes);
        let channels = case.filters[0];
        let mut row = || graph.constant(random.floats(&[channels]));
        let (scale, shift, mean) = (row(), row(), row());
        let positive = random.floats(&[channels]);
        let positive = positive.as_slice::<f32>().unwrap().iter().map(|v| v.abs() + 0.1);
        let variance = Tensor::from_vec(&[channels], positive.collect::<Vec<f32>>()).unwrap();
        let variance = graph.constant(variance);
        let normal = graph.node("BatchNormalization", &[y, scale, shift, mean, variance], &[]);
        let relu = graph.node("Relu", &[normal], &[]);
        graph.output(plain);
        graph.output(relu);
        let label = format!("{:?} {:?}", case.image, case.filters);
        graph.agrees_on_device(&label, &[random.floats(case.image)], F32);
    }
}

#[test]
fn padding_by_name_agrees() {
    let mut random = Random::new();
    for pad in ["SAME_UPPER", "SAME_LOWER", "VALID"] {
        let mut graph = Graph::default();
        let x = graph.input(DType::F32, &[-1, 3, 8, 9]);
        let w = graph.constant(random.floats(&[4, 3, 3, 2]));
        let auto_pad = ("auto_pad", Attribute::String(pad.as_bytes().to_vec()));
        let strides = ("strides", Attribute::Ints(vec![2, 3]));
        let y = graph.node("Conv", &[x, w], &[auto_pad, strides]);
        graph.output(y);
        graph.agrees_on_device(pad, &[random.floats(&[2, 3, 8, 9])], F32);
    }
}

#[test]
fn pools_agree() {
    let mut random = Random::new();
    for op in ["MaxPool", "AveragePool"] {
        for (pads, count) in [([0, 0, 0, 0], 0), ([1, 1, 1, 1], 0), ([1, 0, 0, 1], 1)] {
            let mut graph = Graph::default();
            let x = graph.input(DType::F32, &[-1, 3, 9, 8]);
            let mut attributes = vec![
                ("kernel_shape", Attribute::Ints(vec![3, 2])),
                ("strides", Attribute::Ints(vec![2, 2])),
                ("pads", Attribute::Ints(pads.to_vec())),
            ];
            if op == "AveragePool" {
                attributes.push(("count_include_pad", Attribute::Int(count)));
            }
            let y = graph.node(op, &[x], &attributes);
            graph.output(y);
            let label = format!("{op} {pads:?}");
            graph.agrees_on_device(&label, &[random.floats(&[2, 3, 9, 8])], F32);
        }
    }
}
