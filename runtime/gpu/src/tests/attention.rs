//! Attention, against the CPU device and against float64.

use super::check::{Graph, Random};
use mortise_types::{Attribute, DType, Tensor};

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

/// `Attention` of opset 24 with any of its inputs and outputs.
struct Onnx {
    batch: usize,
    /// Of queries, and of keys and values.
    heads: [usize; 2],
    queries: usize,
    keys: usize,
    past: usize,
    size: usize,
    causal: bool,
    softcap: f32,
    is_ragged: bool,
    /// By name: none, floats, booleans, or booleans for a part of the keys.
    mask: &'static str,
    dtype: DType,
    has_rows: bool,
    has_present: bool,
}

const ONNX: Onnx = Onnx {
    batch: 3,
    heads: [4, 2],
    queries: 7,
    keys: 33,
    past: 0,
    size: 16,
    causal: false,
    softcap: 0.0,
    is_ragged: false,
    mask: "none",
    dtype: DType::F32,
    has_rows: false,
    has_present: false,
};

impl Onnx {
    /// Of queries (0), keys (1) or values (2).
    fn shape(&self, at: usize) -> Vec<usize> {
        let (heads, length) = match at {
            0 => (self.heads[0], self.queries),
            _ => (self.heads[1], self.keys),
        };
        match self.has_rows {
            true => vec![self.batch, length, heads * self.size],
            false => vec![self.batch, heads, length, self.size],
        }
    }

    fn tensor(&self, random: &mut Random, shape: &[usize]) -> Tensor {
        match self.dtype {
            DType::F16 => random.halves(shape),
            _ => random.floats(shape),
        }
    }

    fn mask(&self, random: &mut Random) -> Option<Tensor> {
        let all = self.past + self.keys;
        let flags = |random: &mut Random, shape: &[usize]| {
            let width = shape[shape.len() - 1];
            let count = shape.iter().product();
            // The first key is always seen: without any, there is no answer.
            let flag = |at: usize, byte: u8| u8::from(at.is_multiple_of(width) || byte > 100);
            let bytes = random.bytes(&[count]);
            let flags = bytes.iter().enumerate().map(|(at, byte)| flag(at, *byte));
            Tensor::from_bools(shape, flags.collect()).unwrap()
        };
        match self.mask {
            "floats" => Some(self.tensor(random, &[self.batch, 1, self.queries, all])),
            "booleans" => Some(flags(random, &[self.queries, all])),
            "short" => Some(flags(random, &[1, self.heads[0], self.queries, all - 2])),
            _ => None,
        }
    }

    fn lengths(&self, random: &mut Random) -> Option<Tensor> {
        let length = |random: &mut Random| 1 + random.usize(self.keys + 3) as i64;
        let lengths = (0..self.batch).map(|_| length(random)).collect();
        self.is_ragged.then(|| Tensor::from_vec(&[self.batch], lengths).unwrap())
    }

    fn run(&self, random: &mut Random) -> (Graph, Vec<Tensor>) {
        let mut given: Vec<Option<Tensor>> =
            (0..3).map(|at| Some(self.tensor(random, &self.shape(at)))).collect();
        given.push(self.mask(random));
        let past = [self.batch, self.heads[1], self.past, self.size];
        for _ in 0..2 {
            given.push((self.past > 0).then(|| self.tensor(random, &past)));
        }
        given.push(self.lengths(random));
        let mut graph = Graph::default();
        let mut inputs = Vec::new();
        for tensor in &given {
            inputs.push(tensor.as_ref().map(|tensor| {
                let dims: Vec<i64> = tensor.shape().iter().map(|dim| *dim as i64).collect();
                graph.input(tensor.dtype(), &dims)
            }));
        }
        let attributes = [
            ("is_causal", Attribute::Int(i64::from(self.causal))),
            ("softcap", Attribute::Float(self.softcap)),
            ("q_num_heads", Attribute::Int(self.heads[0] as i64)),
            ("kv_num_heads", Attribute::Int(self.heads[1] as i64)),
        ];
        let attributes = if self.has_rows { &attributes[..] } else { &attributes[..2] };
        let count = if self.has_present { 3 } else { 1 };
        let outputs = graph.nodes("", "Attention", &[], attributes, count);
        let node = graph.def.body.nodes.last_mut().unwrap();
        node.opset = 24;
        node.inputs = inputs;
        outputs.into_iter().for_each(|output| graph.output(output));
        (graph, given.into_iter().flatten().collect())
    }

    fn agrees(&self, random: &mut Random) {
        let (graph, inputs) = self.run(random);
        let Self { queries, keys, past, causal, mask, is_ragged, .. } = self;
        let label = format!("{queries} {keys} {past} {causal} {mask} {is_ragged}");
        let tolerance = if self.dtype == DType::F16 { 2e-3 } else { F32 };
        graph.agrees_on_device(&label, &inputs, tolerance);
    }
}

#[test]
fn ragged_batches_agree() {
    let mut random = Random::new();
    for (queries, keys) in [(1, 7), (7, 33), (33, 129), (1, 1)] {
        for causal in [false, true] {
            for has_rows in [false, true] {
                Onnx { queries, keys, causal, has_rows, is_ragged: true, ..ONNX }
                    .agrees(&mut random);
            }
        }
    }
    for mask in ["floats", "booleans", "short"] {
        Onnx { mask, is_ragged: true, ..ONNX }.agrees(&mut random);
    }
    // Keys and values of earlier steps in one buffer, of which each batch
    // uses a part.
    Onnx { is_ragged: true, has_present: true, ..ONNX }.agrees(&mut random);
}

#[test]
fn attention_with_a_past_agrees() {
    let mut random = Random::new();
    for (past, keys) in [(0, 7), (1, 1), (7, 1), (33, 5), (129, 3)] {
        for causal in [false, true] {
            for has_rows in [false, true] {
                let has_present = true;
                Onnx { past, keys, queries: keys, causal, has_rows, has_present, ..ONNX }
                    .agrees(&mut random);
            }
        }
    }
    for mask in ["floats", "booleans", "short"] {
        Onnx { mask, past: 9, keys: 7, has_present: true, ..ONNX }.agrees(&mut random);
    }
    Onnx { past: 5, keys: 2, ..ONNX }.agrees(&mut random);
}

#[test]
fn masks_caps_and_halves_of_attention_agree() {
    let mut random = Random::new();
    for mask in ["none", "floats", "booleans", "short"] {
        for softcap in [0.0, 0.7] {
            Onnx { mask, softcap, ..ONNX }.agrees(&mut random);
        }
        let dtype = DType::F16;
        Onnx { mask, dtype, past: 3, has_present: true, ..ONNX }.agrees(&mut random);
    }
}

/// A ragged batch, grouped heads, and a cap on the scores, in float64.
#[test]
fn ragged_attention_matches_float64() {
    let mut random = Random::new();
    for (queries, keys, size) in [(1, 33, 128), (7, 129, 24), (33, 7, 1)] {
        let call = Onnx { queries, keys, size, is_ragged: true, softcap: 2.0, ..ONNX };
        let (graph, inputs) = call.run(&mut random);
        let got = graph.run_on(&*super::device(), &inputs).unwrap();
        let floats = |at: usize| -> Vec<f64> {
            inputs[at].as_slice::<f32>().unwrap().iter().map(|v| f64::from(*v)).collect()
        };
        let (q, k, v) = (floats(0), floats(1), floats(2));
        let lengths = inputs[3].as_slice::<i64>().unwrap();
        for (at, got) in got[0].as_slice::<f32>().unwrap().iter().enumerate() {
            let (d, row, lane) = (at % size, at / size % queries, at / size / queries);
            let (head, batch) = (lane % call.heads[0], lane / call.heads[0]);
            let kv = batch * call.heads[1] + head * call.heads[1] / call.heads[0];
            let seen = (lengths[batch] as usize).min(keys);
            let score = |key: usize| {
                let own = &q[(lane * queries + row) * size..][..size];
                let other = &k[(kv * keys + key) * size..][..size];
                let dot: f64 = own.iter().zip(other).map(|(a, b)| a * b).sum();
                (2.0 * (dot / (size as f64).sqrt() / 2.0).tanh()).exp()
            };
            let total: f64 = (0..seen).map(score).sum();
            let value = |key: usize| v[(kv * keys + key) * size + d];
            let want = (0..seen).map(|key| score(key) * value(key)).sum::<f64>() / total;
            let label = format!("{queries} {keys} {size}, element {at}");
            assert!((f64::from(*got) - want).abs() < 1e-5, "{label}: {got} for {want}");
        }
    }
}

/// The masks of `com.microsoft`: how many keys count, or flags.
#[test]
fn masks_of_keys_agree() {
    let mut random = Random::new();
    let (batch, queries, keys, width) = (3, 5, 33, 24);
    for shape in [vec![batch], vec![batch, keys], vec![batch, queries, keys]] {
        for causal in [0, 1] {
            let limit = if shape.len() == 1 { keys as i64 + 2 } else { 2 };
            let mask = random.indices(&shape, limit);
            let mask: Vec<i32> = mask.as_slice().unwrap().iter().map(|v: &i64| *v as i32).collect();
            let mut graph = Graph::default();
            let input = |graph: &mut Graph, length: usize| {
                graph.input(DType::F32, &[-1, length as i64, width as i64])
            };
            let inputs = [queries, keys, keys].map(|length| input(&mut graph, length));
            let dims: Vec<i64> = shape.iter().map(|dim| *dim as i64).collect();
            let flags = graph.input(DType::I32, &dims);
            let attributes =
                [("num_heads", Attribute::Int(3)), ("unidirectional", Attribute::Int(causal))];
            let y = graph.nodes("com.microsoft", "MultiHeadAttention", &inputs, &attributes, 1)[0];
            let node = graph.def.body.nodes.last_mut().unwrap();
            node.inputs.extend([None, Some(flags)]);
            graph.output(y);
            let tensors =
                [queries, keys, keys].map(|length| random.floats(&[batch, length, width]));
            let mut tensors = tensors.to_vec();
            tensors.push(Tensor::from_vec(&shape, mask).unwrap());
            graph.agrees_on_device(&format!("{shape:?} {causal}"), &tensors, F32);
        }
    }
}

/// What a node makes on the device may be read by one that the CPU runs.
#[test]
fn answers_of_attention_cross_to_the_cpu() {
    let mut random = Random::new();
    for has_rows in [false, true] {
        let call = Onnx { past: 3, has_rows, has_present: true, ..ONNX };
        let (mut graph, inputs) = call.run(&mut random);
        for output in graph.def.body.outputs.clone() {
            let hard = graph.node("Hardmax", &[output], &[("axis", Attribute::Int(-1))]);
            graph.output(hard);
        }
        assert_eq!(graph.left_to_cpu(&inputs), ["Hardmax"; 3]);
        graph.agrees_as("crossing", &inputs, F32);
    }
}

/// What is no number spreads as far as on the CPU, and not beyond the keys that
/// count.
#[test]
fn attention_keeps_what_is_no_number() {
    let mut random = Random::new();
    for is_ragged in [false, true] {
        let call = Onnx { is_ragged, batch: 2, ..ONNX };
        let (graph, mut inputs) = call.run(&mut random);
        for (at, value) in [(0, f32::NAN), (1, f32::NAN), (2, f32::NAN), (2, f32::INFINITY)] {
            let tensor = &mut inputs[at];
            let mut values = tensor.as_slice::<f32>().unwrap().to_vec();
            // In the first batch, and of keys and values the first of a head.
            let slot = random.usize(call.size);
            values[slot] = value;
            *tensor = Tensor::from_vec(tensor.shape(), values).unwrap();
            graph.agrees_on_device(&format!("{value} in {at}"), &inputs, F32);
        }
    }
}
