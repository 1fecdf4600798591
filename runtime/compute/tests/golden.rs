//! Operators against onnxruntime: `tests/golden/ops/gen_*.py` wrote the cases.
//!
//! `MORTISE_GOLDEN=name` runs only the cases whose name starts so.

use mortise_compute::{CpuDevice, CpuOptions, compile_graph};
use mortise_graph::GraphLimits;
use mortise_types::{
    Assets, Attribute, DType, GraphBody, GraphDef, NodeDef, Result, RunControl, Tensor, TensorSpec,
    ValueDef, ValueId, ValueSource, f16,
};
use serde_json::Value as Json;
use std::collections::HashMap;
use std::sync::Arc;

const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/ops");

/// Every line of every file of cases.
fn all_cases() -> String {
    let files = std::fs::read_dir(CASES).expect("the cases are in the tree");
    let mut paths: Vec<_> = files.map(|file| file.expect("a readable folder").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    paths.sort();
    paths.iter().map(|path| std::fs::read_to_string(path).expect("a readable file")).collect()
}

#[test]
fn operators_answer_as_onnxruntime_does() {
    let wanted = std::env::var("MORTISE_GOLDEN").unwrap_or_default();
    let cases = all_cases();
    let mut failures = Vec::new();
    let mut count = 0;
    for line in cases.lines() {
        let case: Json = serde_json::from_str(line).expect("a case is JSON");
        let name = case["name"].as_str().unwrap_or_default();
        if name.starts_with(&wanted) {
            count += 1;
            if let Err(message) = check(&case) {
                failures.push(format!("{name}: {message}"));
            }
        }
    }
    assert!(count > 0, "no case is called {wanted}");
    assert!(failures.is_empty(), "{} of {count} failed:\n{}", failures.len(), failures.join("\n"));
}

fn check(case: &Json) -> Result<(), String> {
    let outputs = run(case);
    if case["error"] == Json::Bool(true) {
        return match outputs {
            Ok(outputs) => Err(format!("expected an error, got {outputs:?}")),
            Err(_) => Ok(()),
        };
    }
    let outputs = outputs.map_err(|error| format!("{error:?}"))?;
    let tolerance = case["tol"].as_f64().unwrap_or_default();
    let expected = case["out"].as_array().expect("outputs");
    for (got, want) in outputs.iter().zip(expected) {
        let name = want["name"].as_str().unwrap_or_default();
        compare(got, &tensor(want), tolerance).map_err(|message| format!("{name}: {message}"))?;
    }
    Ok(())
}

fn run(case: &Json) -> Result<Vec<Tensor>> {
    let mut builder = Builder::default();
    let mut inputs = Vec::new();
    for (name, value) in case["in"].as_object().expect("inputs") {
        let tensor = tensor(value);
        let id = builder.value(name, ValueSource::Input);
        builder.def.body.inputs.push(id);
        let shape = vec![-1; tensor.rank()];
        builder.def.inputs.push(TensorSpec::new(name, tensor.dtype(), &shape));
        inputs.push(tensor);
    }
    builder.constants(&case["const"]);
    builder.def.body.nodes = builder.nodes(&case["nodes"]);
    for output in case["out"].as_array().expect("outputs") {
        let name = output["name"].as_str().expect("a name");
        builder.def.body.outputs.push(builder.names[name]);
        builder.def.output_names.push(name.to_owned());
    }
    let device = CpuDevice::new(CpuOptions { threads: 1 });
    let exe = compile_graph(&*device, &builder.def, &Assets::default(), &GraphLimits::default())?;
    exe.execute(inputs, &RunControl::unbounded())?.wait()
}

/// Turns names into values; inner scopes see outer names.
#[derive(Default)]
struct Builder {
    def: GraphDef,
    names: HashMap<String, ValueId>,
}

impl Builder {
    fn value(&mut self, name: &str, source: ValueSource) -> ValueId {
        self.def.values.push(ValueDef { name: name.to_owned(), source });
        let id = ValueId(self.def.values.len() as u32 - 1);
        self.names.insert(name.to_owned(), id);
        id
    }

    fn constants(&mut self, constants: &Json) {
        for (name, value) in constants.as_object().expect("constants") {
            self.value(name, ValueSource::Constant(tensor(value)));
        }
    }

    fn nodes(&mut self, nodes: &Json) -> Vec<NodeDef> {
        nodes.as_array().expect("nodes").iter().map(|node| self.node(node)).collect()
    }

    fn node(&mut self, node: &Json) -> NodeDef {
        let text = |key: &str| node[key].as_str().expect("text").to_owned();
        let attributes = node["attr"].as_object().expect("attributes");
        let attributes = attributes
            .iter()
            .map(|(name, value)| (Arc::from(name.as_str()), self.attribute(value)))
            .collect();
        let names = |key: &str| node[key].as_array().expect("names").iter();
        let inputs = names("in")
            .map(|name| name.as_str().filter(|name| !name.is_empty()).map(|name| self.names[name]))
            .collect();
        let outputs = names("out")
            .map(|name| name.as_str().map(|name| self.value(name, ValueSource::Node)))
            .collect();
        NodeDef {
            domain: text("domain").into(),
            op: text("op").into(),
            opset: node["opset"].as_u64().expect("an opset") as u32,
            name: "case".to_owned(),
            inputs,
            attributes,
            outputs,
        }
    }

    fn attribute(&mut self, value: &Json) -> Attribute {
        let (kind, value) = value.as_object().and_then(|map| map.iter().next()).expect("one kind");
        let list = || value.as_array().expect("a list").iter();
        let bytes = |value: &Json| value.as_str().expect("text").as_bytes().to_vec();
        match kind.as_str() {
            "i" => Attribute::Int(value.as_i64().expect("an integer")),
            "f" => Attribute::Float(number(value) as f32),
            "str" => Attribute::String(bytes(value)),
            "is" => Attribute::Ints(list().map(|item| item.as_i64().expect("integers")).collect()),
            "fs" => Attribute::Floats(list().map(|item| number(item) as f32).collect()),
            "ss" => Attribute::Strings(list().map(bytes).collect()),
            "t" => Attribute::Tensor(tensor(value)),
            "g" => Attribute::Graph(Arc::new(self.body(value))),
            other => panic!("no attribute kind {other}"),
        }
    }

    fn body(&mut self, body: &Json) -> GraphBody {
        let outer = self.names.clone();
        let inputs = body["in"].as_array().expect("inputs").iter();
        let inputs = inputs
            .map(|name| self.value(name.as_str().expect("a name"), ValueSource::Input))
            .collect();
        self.constants(&body["const"]);
        let nodes = self.nodes(&body["nodes"]);
        let outputs = body["out"].as_array().expect("outputs").iter();
        let outputs = outputs.map(|name| self.names[name.as_str().expect("a name")]).collect();
        self.names = outer;
        GraphBody { inputs, nodes, outputs }
    }
}

fn number(value: &Json) -> f64 {
    match value.as_str() {
        Some("nan") => f64::NAN,
        Some("inf") => f64::INFINITY,
        Some("-inf") => f64::NEG_INFINITY,
        _ => value.as_f64().expect("a number"),
    }
}

fn tensor(value: &Json) -> Tensor {
    let list = |key: &str| value[key].as_array().expect("a list");
    let shape: Vec<usize> =
        list("s").iter().map(|size| size.as_u64().expect("a size") as usize).collect();
    let data = list("d");
    let int = |item: &Json| item.as_i64().or(item.as_u64().map(|item| item as i64));
    let ints = || data.iter().map(|item| int(item).expect("an integer"));
    macro_rules! integers {
        ($ty:ty) => {
            Tensor::from_vec(&shape, ints().map(|item| item as $ty).collect())
        };
    }
    let tensor = match value["t"].as_str().expect("a dtype") {
        "f64" => Tensor::from_vec(&shape, data.iter().map(number).collect()),
        "f32" => Tensor::from_vec(&shape, data.iter().map(|item| number(item) as f32).collect()),
        "f16" => Tensor::from_vec(&shape, data.iter().map(|x| f16::from_f64(number(x))).collect()),
        "i64" => integers!(i64),
        "i32" => integers!(i32),
        "i16" => integers!(i16),
        "i8" => integers!(i8),
        "u64" => integers!(u64),
        "u32" => integers!(u32),
        "u16" => integers!(u16),
        "u8" => integers!(u8),
        "bool" => Tensor::from_bools(&shape, ints().map(|item| item as u8).collect()),
        "str" => {
            let items = data.iter().map(|item| item.as_str().expect("text"));
            Tensor::from_strings(&shape, items.collect())
        }
        other => panic!("no dtype {other}"),
    };
    tensor.expect("a tensor")
}

/// Infinities and NaN must be the same; other floats near.
fn compare(got: &Tensor, want: &Tensor, tolerance: f64) -> Result<(), String> {
    if got.dtype() != want.dtype() || got.shape() != want.shape() {
        return Err(format!("got {got:?}, want {want:?}"));
    }
    if let (Some(got), Some(want)) = (doubles(got), doubles(want)) {
        let near = |got: f64, want: f64| {
            got == want
                || (got.is_nan() && want.is_nan())
                || (got - want).abs() <= tolerance * want.abs().max(1.0)
        };
        return match got.iter().zip(&want).position(|(&got, &want)| !near(got, want)) {
            None => Ok(()),
            Some(at) => Err(format!("element {at}: got {got:?}, want {want:?}")),
        };
    }
    let same = match got.dtype() {
        DType::String => got.strings().ok() == want.strings().ok(),
        _ => got.bytes() == want.bytes(),
    };
    if same { Ok(()) } else { Err(format!("got {}, want {}", show(got), show(want))) }
}

fn doubles(tensor: &Tensor) -> Option<Vec<f64>> {
    match tensor.dtype() {
        DType::F64 => tensor.as_slice::<f64>().ok().map(<[f64]>::to_vec),
        DType::F32 => {
            tensor.as_slice::<f32>().ok().map(|list| list.iter().map(|&x| f64::from(x)).collect())
        }
        DType::F16 => {
            tensor.as_slice::<f16>().ok().map(|list| list.iter().map(|x| x.to_f64()).collect())
        }
        _ => None,
    }
}

fn show(tensor: &Tensor) -> String {
    match tensor.dtype() {
        DType::String => {
            let strings = tensor.strings().expect("strings");
            let items: Vec<_> = strings.iter().map(String::from_utf8_lossy).collect();
            format!("{items:?}")
        }
        DType::I64 => format!("{:?}", tensor.as_slice::<i64>().expect("integers")),
        DType::I32 => format!("{:?}", tensor.as_slice::<i32>().expect("integers")),
        _ => format!("{:?}", tensor.bytes().expect("bytes")),
    }
}
