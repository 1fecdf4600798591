//! Whole models with random weights, from request tensor to answer tensor.
//! `tests/bench/gpu_torch.py` builds the same shapes.

use crate::median_ms;
use mortise_compute::{Device, compile_graph};
use mortise_gpu::{Bench, DispatchTime};
use mortise_graph::GraphLimits;
use mortise_types::{
    Assets, Attribute, DType, GraphDef, NodeDef, Result, RunControl, Shape, Tensor, TensorSpec,
    ValueDef, ValueId, ValueSource,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// How large the models are.
pub(crate) struct Scale {
    pub(crate) layers: usize,
    pub(crate) image: usize,
    pub(crate) batches: &'static [usize],
    pub(crate) rounds: usize,
}

/// As the models are known, for a GPU.
pub(crate) const FULL: Scale = Scale { layers: 12, image: 224, batches: &[1, 16], rounds: 50 };

/// For a software adapter.
pub(crate) const SMALL: Scale = Scale { layers: 1, image: 64, batches: &[1], rounds: 2 };

const TOKENS: usize = 128;
const VOCABULARY: usize = 30_522;
const WIDTH: usize = 768;

pub(crate) fn measure(device: &dyn Device, scale: &Scale) -> Result<Vec<Value>> {
    let images = |batch| {
        let values = (0..batch * 3 * scale.image * scale.image).map(|at| (at % 255) as f32 / 255.0);
        Tensor::from_vec(&[batch, 3, scale.image, scale.image], values.collect())
    };
    let tokens = |batch| {
        let ids = (0..batch * TOKENS).map(|at| (at * 7919 % VOCABULARY) as i64);
        Tensor::from_vec(&[batch, TOKENS], ids.collect())
    };
    let mut rows = Vec::new();
    rows.extend(timed(device, scale, "resnet-50", &resnet(scale)?, &images)?);
    rows.extend(timed(device, scale, "bert-base", &bert(scale)?, &tokens)?);
    Ok(rows)
}

/// What each kernel takes of a run of each model, largest first.
pub(crate) fn profile(bench: &Bench, scale: &Scale) -> Result<Vec<Value>> {
    let image = scale.image;
    let models = [("resnet-50", resnet(scale)?), ("bert-base", bert(scale)?)];
    let mut rows = Vec::new();
    for (name, def) in &models {
        for batch in scale.batches {
            let shape = match *name {
                "resnet-50" => Shape::from_slice(&[*batch, 3, image, image]),
                _ => Shape::from_slice(&[*batch, TOKENS]),
            };
            rows.extend(summed(name, *batch, &bench.profile(def, &[shape])?));
        }
    }
    Ok(rows)
}

/// Times of equal dispatches together.
fn summed(name: &str, batch: usize, times: &[DispatchTime]) -> Vec<Value> {
    let mut sums: BTreeMap<(&str, [u32; 3]), (usize, Duration)> = BTreeMap::new();
    for DispatchTime { kernel, groups, time } in times {
        let sum = sums.entry((*kernel, *groups)).or_default();
        *sum = (sum.0 + 1, sum.1 + *time);
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by_key(|(_, (_, time))| std::cmp::Reverse(*time));
    let row = |((kernel, groups), (count, time)): ((&str, [u32; 3]), (usize, Duration))| {
        let us = time.as_secs_f64() * 1e6;
        eprintln!("{name} {batch:>3} {us:>10.1} us {count:>3} x {kernel} {groups:?}");
        json!({ "model": name, "batch": batch, "kernel": kernel, "groups": groups, "count": count, "us": us })
    };
    sums.into_iter().map(row).collect()
}

fn timed(
    device: &dyn Device,
    scale: &Scale,
    name: &str,
    def: &GraphDef,
    input: &dyn Fn(usize) -> Result<Tensor>,
) -> Result<Vec<Value>> {
    let model = compile_graph(device, def, &Assets::default(), &GraphLimits::default())?;
    let row = |batch: &usize| {
        let input = input(*batch)?;
        let run = || model.execute(vec![input.clone()], &RunControl::unbounded())?.wait();
        run()?;
        let left = model.operators().iter().filter(|op| op.placement != "gpu").count();
        let ms = median_ms(scale.rounds, run)?;
        eprintln!("{name:<14} batch {batch:>3} {ms:>12.3} ms, {left} nodes on the CPU");
        Ok(json!({
            "name": name, "batch": batch, "dtype": "f32", "layers": scale.layers,
            "image": scale.image, "ours_ms": ms, "torch_ms": null, "ratio": null,
            "nodes_on_cpu": left,
        }))
    };
    scale.batches.iter().map(row).collect()
}

/// A graph under construction, and the state of its random weights.
struct Net {
    def: GraphDef,
    random: u64,
}

impl Net {
    fn new() -> Self {
        Self { def: GraphDef::default(), random: 1 }
    }

    fn value(&mut self, source: ValueSource) -> ValueId {
        let name = format!("v{}", self.def.values.len());
        self.def.values.push(ValueDef { name, source });
        ValueId(self.def.values.len() as u32 - 1)
    }

    fn input(&mut self, dtype: DType, shape: &[i64]) -> ValueId {
        let value = self.value(ValueSource::Input);
        self.def.body.inputs.push(value);
        self.def.inputs.push(TensorSpec::new("x", dtype, shape));
        value
    }

    /// Weights that keep the size of what passes through `terms` of them.
    fn weights(&mut self, shape: &[usize], terms: usize) -> Result<ValueId> {
        let scale = (3.0 / terms as f32).sqrt();
        let mut next = || {
            self.random =
                self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_041);
            ((self.random >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * scale
        };
        let values = (0..shape.iter().product()).map(|_: usize| next()).collect();
        Ok(self.value(ValueSource::Constant(Tensor::from_vec(shape, values)?)))
    }

    fn ints(&mut self, values: &[i64]) -> Result<ValueId> {
        let tensor = Tensor::from_vec(&[values.len()], values.to_vec())?;
        Ok(self.value(ValueSource::Constant(tensor)))
    }

    fn node(&mut self, op: &str, inputs: &[ValueId], attributes: &[(&str, Attribute)]) -> ValueId {
        let output = self.value(ValueSource::Node);
        self.def.body.nodes.push(NodeDef {
            domain: "".into(),
            op: op.into(),
            opset: 21,
            name: format!("{op}_{}", output.0),
            inputs: inputs.iter().copied().map(Some).collect(),
            attributes: attributes.iter().map(|(name, a)| ((*name).into(), a.clone())).collect(),
            outputs: vec![Some(output)],
        });
        output
    }

    fn finish(mut self, output: ValueId) -> GraphDef {
        self.def.body.outputs.push(output);
        self.def.output_names.push("y".to_owned());
        self.def
    }

    fn conv(
        &mut self,
        x: ValueId,
        [inside, out]: [usize; 2],
        size: usize,
        stride: i64,
    ) -> Result<ValueId> {
        let w = self.weights(&[out, inside, size, size], inside * size * size)?;
        let b = self.weights(&[out], 1_000)?;
        let pad = (size / 2) as i64;
        let attributes = [
            ("strides", Attribute::Ints(vec![stride; 2])),
            ("pads", Attribute::Ints(vec![pad; 4])),
        ];
        Ok(self.node("Conv", &[x, w, b], &attributes))
    }

    fn linear(&mut self, x: ValueId, [inside, out]: [usize; 2]) -> Result<ValueId> {
        let w = self.weights(&[inside, out], inside)?;
        let b = self.weights(&[out], 1_000)?;
        let product = self.node("MatMul", &[x, w], &[]);
        Ok(self.node("Add", &[product, b], &[]))
    }

    fn norm(&mut self, x: ValueId) -> Result<ValueId> {
        let (scale, bias) = (self.weights(&[WIDTH], 1)?, self.weights(&[WIDTH], 1_000)?);
        Ok(self.node("LayerNormalization", &[x, scale, bias], &[]))
    }
}

/// ResNet-50 with its normalisation folded into the convolutions.
fn resnet(scale: &Scale) -> Result<GraphDef> {
    let mut net = Net::new();
    let x = net.input(DType::F32, &[-1, 3, scale.image as i64, scale.image as i64]);
    let x = net.conv(x, [3, 64], 7, 2)?;
    let x = net.node("Relu", &[x], &[]);
    let window = [
        ("kernel_shape", Attribute::Ints(vec![3; 2])),
        ("strides", Attribute::Ints(vec![2; 2])),
        ("pads", Attribute::Ints(vec![1; 4])),
    ];
    let mut x = net.node("MaxPool", &[x], &window);
    let mut channels = 64;
    for (stage, blocks) in [3, 4, 6, 3].into_iter().enumerate() {
        let width = 64 << stage;
        for block in 0..blocks {
            let stride = if block == 0 && stage > 0 { 2 } else { 1 };
            x = bottleneck(&mut net, x, [channels, width], stride)?;
            channels = width * 4;
        }
    }
    let x = net.node("GlobalAveragePool", &[x], &[]);
    let x = net.node("Flatten", &[x], &[]);
    let y = net.linear(x, [2048, 1000])?;
    Ok(net.finish(y))
}

fn bottleneck(
    net: &mut Net,
    x: ValueId,
    [inside, width]: [usize; 2],
    stride: i64,
) -> Result<ValueId> {
    let y = net.conv(x, [inside, width], 1, 1)?;
    let y = net.node("Relu", &[y], &[]);
    let y = net.conv(y, [width, width], 3, stride)?;
    let y = net.node("Relu", &[y], &[]);
    let y = net.conv(y, [width, width * 4], 1, 1)?;
    let skip = match inside == width * 4 {
        true => x,
        false => net.conv(x, [inside, width * 4], 1, stride)?,
    };
    let sum = net.node("Add", &[y, skip], &[]);
    Ok(net.node("Relu", &[sum], &[]))
}

/// BERT-base without its pooler, at 128 tokens.
fn bert(scale: &Scale) -> Result<GraphDef> {
    let mut net = Net::new();
    let ids = net.input(DType::I64, &[-1, TOKENS as i64]);
    let words = net.weights(&[VOCABULARY, WIDTH], 1)?;
    let places = net.weights(&[1, TOKENS, WIDTH], 1)?;
    let x = net.node("Gather", &[words, ids], &[]);
    let x = net.node("Add", &[x, places], &[]);
    let mut x = net.norm(x)?;
    for _ in 0..scale.layers {
        let attended = attention(&mut net, x)?;
        let sum = net.node("Add", &[x, attended], &[]);
        let middle = net.norm(sum)?;
        let y = net.linear(middle, [WIDTH, 4 * WIDTH])?;
        let y = net.node("Gelu", &[y], &[]);
        let y = net.linear(y, [4 * WIDTH, WIDTH])?;
        let sum = net.node("Add", &[middle, y], &[]);
        x = net.norm(sum)?;
    }
    Ok(net.finish(x))
}

fn attention(net: &mut Net, x: ValueId) -> Result<ValueId> {
    let split = net.ints(&[0, 0, 12, 64])?;
    let heads = |net: &mut Net, perm: [i64; 4]| {
        let y = net.linear(x, [WIDTH, WIDTH])?;
        let y = net.node("Reshape", &[y, split], &[]);
        Ok(net.node("Transpose", &[y], &[("perm", Attribute::Ints(perm.to_vec()))]))
    };
    let q = heads(net, [0, 2, 1, 3])?;
    let k = heads(net, [0, 2, 3, 1])?;
    let v = heads(net, [0, 2, 1, 3])?;
    let scores = net.node("MatMul", &[q, k], &[]);
    let scale = net.value(ValueSource::Constant(Tensor::scalar(0.125f32)));
    let scores = net.node("Mul", &[scores, scale], &[]);
    let shares = net.node("Softmax", &[scores], &[]);
    let y = net.node("MatMul", &[shares, v], &[]);
    let y = net.node("Transpose", &[y], &[("perm", Attribute::Ints(vec![0, 2, 1, 3]))]);
    let joined = net.ints(&[0, 0, WIDTH as i64])?;
    let y = net.node("Reshape", &[y, joined], &[]);
    net.linear(y, [WIDTH, WIDTH])
}
