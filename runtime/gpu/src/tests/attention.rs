//! Attention, against the CPU device and against float64.

use super::check::{Graph, Random};
use mortise_types::{Attribute, DType};

const F32: f32 = 2e-5;

#[test]
fn attention_of_many_heads_agrees() {
    let mut random = Random::new();
    for (queries, keys, heads, size) in
        [(1, 7, 1, 33), (33, 33, 3, 16), (129, 129, 2, 64), (5, 40, 2, 128)]
    {
        for causal in [0, 1] {
            let width = heads * size;
            let mut graph = Graph::default();
            let q = graph.input(DType::F32, &[-1, queries, width]);
            let k = graph.input(DType::F32, &[-1, keys, width]);
            let v = graph.input(DType::F32, &[-1, keys, width]);
            let attributes =
                [("num_heads", Attribute::Int(heads)), ("unidirectional", Attribute::Int(causal))];
            let y =
                graph.nodes("com.microsoft", "MultiHeadAttention", &[q, k, v], &attributes, 1)[0];
            graph.output(y);
            let shape = |length: i64| [2, length as usize, width as usize];
            let inputs = [queries, keys, keys].map(|length| random.floats(&shape(length)));
            let label = format!("{queries} {keys} {heads} {size} {causal}");
            graph.agrees_on_device(&label, &inputs, F32);
        }
    }
}

#[test]
fn grouped_and_masked_attention_agrees() {
    let mut random = Random::new();
    for mask_shape in [vec![7, 9], vec![2, 1, 7, 9], vec![1, 4, 1, 9]] {
        let mut graph = Graph::default();
        let q = graph.input(DType::F32, &[2, 4, 7, 24]);
        let k = graph.input(DType::F32, &[2, 2, 9, 24]);
        let v = graph.input(DType::F32, &[2, 2, 9, 24]);
        let mask = graph.constant(random.floats(&mask_shape));
        let scale = ("scale", Attribute::Float(0.3));
        let y = graph.node("Attention", &[q, k, v, mask], &[scale]);
        graph.def.body.nodes.last_mut().unwrap().opset = 23;
        graph.output(y);
        let inputs = [[2, 4, 7, 24], [2, 2, 9, 24], [2, 2, 9, 24]].map(|s| random.floats(&s));
        graph.agrees_on_device(&format!("{mask_shape:?}"), &inputs, F32);
    }
}

#[test]
fn attention_spelled_out_agrees() {
    let mut random = Random::new();
    let (batch, length, heads, size) = (2, 17, 3, 8);
    let mut graph = Graph::default();
    let x = graph.input(DType::F32, &[-1, length, heads * size]);
    let shape = graph.ints(&[0, 0, heads, size]);
    let split = graph.node("Reshape", &[x, shape], &[]);
    let perm = |order: [i64; 4]| ("perm", Attribute::Ints(order.to_vec()));
    let q = graph.node("Transpose", &[split], &[perm([0, 2, 1, 3])]);
    let kt = graph.node("Transpose", &[split], &[perm([0, 2, 3, 1])]);
    let scores = graph.node("MatMul", &[q, kt], &[]);
    let weights = graph.node("Softmax", &[scores], &[("axis", Attribute::Int(-1))]);
    let heads_out = graph.node("MatMul", &[weights, q], &[]);
    let back = graph.node("Transpose", &[heads_out], &[perm([0, 2, 1, 3])]);
    let shape = graph.ints(&[0, 0, heads * size]);
    let y = graph.node("Reshape", &[back, shape], &[]);
    graph.output(y);
    let input = random.floats(&[batch, length as usize, (heads * size) as usize]);
    graph.agrees_on_device("spelled out", &[input], F32);
}
