//! The importer without a host: writes down what it would build.

use crate::import::{Files, Options, import};
use crate::proto::{Tensor, TensorData, read_model};
use crate::reader::{File, Source};
use crate::sink::{Argument, Call, Place, Sink};
use mortise_plugin_sdk::{DType, Error, Result, TensorSpec};

/// Imports `bytes` and returns one line per step, for tests.
///
/// # Errors
/// When the bytes are no valid model.
pub(crate) fn trace(bytes: &[u8]) -> Result<Vec<String>> {
    let model = read_model(&File::open(&bytes)?)?;
    let mut sink = Trace::default();
    let notes = import(&model, &Memory(bytes), &Options::default(), &mut sink)?;
    sink.lines.extend(notes.0);
    Ok(sink.lines)
}

/// Numbers values from 0 and writes a line per step.
#[derive(Default)]
struct Trace {
    lines: Vec<String>,
    value_count: u32,
    subgraph_count: u32,
    nesting: usize,
}

impl Trace {
    fn value(&mut self) -> u32 {
        self.value_count += 1;
        self.value_count - 1
    }

    fn line(&mut self, text: String) {
        self.lines.push(format!("{}{text}", "  ".repeat(self.nesting)));
    }
}

impl Sink for Trace {
    type Value = u32;
    type Subgraph = u32;

    fn input(&mut self, spec: &TensorSpec) -> Result<u32> {
        let value = self.value();
        self.line(format!("%{value} = input {} {}{:?}", spec.name, spec.dtype, spec.shape));
        Ok(value)
    }

    fn constant(&mut self, tensor: &Tensor) -> Result<u32> {
        let value = self.value();
        self.line(format!("%{value} = constant {}", show(tensor)));
        Ok(value)
    }

    fn weight(&mut self, place: Place<'_>, dtype: DType, dims: &[u64]) -> Result<u32> {
        let value = self.value();
        let (asset, length) = (place.asset, place.range.length);
        self.line(format!("%{value} = weight {dtype}{dims:?} {length} bytes of {asset}"));
        Ok(value)
    }

    fn node(&mut self, call: Call<'_, u32, u32>) -> Result<Vec<u32>> {
        let outputs: Vec<u32> = (0..call.output_count.min(1 << 16)).map(|_| self.value()).collect();
        let inputs: Vec<String> = call
            .inputs
            .iter()
            .map(|input| input.map_or("-".into(), |id| format!("%{id}")))
            .collect();
        let attributes: Vec<String> = call
            .attributes
            .iter()
            .map(|(name, value)| format!(" {name}={}", argument(value)))
            .collect();
        let left: Vec<String> = outputs.iter().map(|id| format!("%{id}")).collect();
        self.line(format!(
            "{} = {}.{}@{}({}){}",
            left.join(", "),
            call.domain,
            call.op,
            call.opset,
            inputs.join(", "),
            attributes.concat()
        ));
        Ok(outputs)
    }

    fn begin_subgraph(&mut self, input_count: u32) -> Result<Vec<u32>> {
        let inputs: Vec<u32> = (0..input_count).map(|_| self.value()).collect();
        self.line(format!("subgraph {inputs:?}"));
        self.nesting += 1;
        Ok(inputs)
    }

    fn end_subgraph(&mut self, outputs: &[u32]) -> Result<u32> {
        self.nesting = self.nesting.saturating_sub(1);
        let id = self.subgraph_count;
        self.line(format!("graph {id} gives {outputs:?}"));
        self.subgraph_count += 1;
        Ok(id)
    }

    fn output(&mut self, name: &str, value: u32) -> Result<()> {
        self.line(format!("output {name} = %{value}"));
        Ok(())
    }
}

fn argument(value: &Argument<'_, u32>) -> String {
    match value {
        Argument::Int(value) => value.to_string(),
        Argument::Float(value) => format!("{value:?}"),
        Argument::Text(value) => String::from_utf8_lossy(value).into_owned(),
        Argument::Tensor(tensor) => show(tensor),
        Argument::Graph(id) => format!("graph {id}"),
        Argument::Ints(values) => format!("{values:?}"),
        Argument::Floats(values) => format!("{values:?}"),
        Argument::Texts(values) => format!("{} texts", values.len()),
    }
}

fn show(tensor: &Tensor) -> String {
    let data = match &tensor.data {
        TensorData::Bytes(bytes) => format!("{} bytes", bytes.len()),
        TensorData::Strings(strings) => format!("{} strings", strings.len()),
        TensorData::File(_) | TensorData::External { .. } => "unread".into(),
    };
    format!("{}{:?} {data}", tensor.dtype, tensor.dims)
}

/// A deployment that consists of one file in memory.
struct Memory<'a>(&'a [u8]);

impl Files for Memory<'_> {
    fn model(&self) -> &str {
        "model"
    }

    fn external(&self, location: &str) -> Result<(String, u64)> {
        Err(Error::invalid(format!("there is no file \"{location}\"")))
    }

    fn read(&self, place: Place<'_>) -> Result<Vec<u8>> {
        Source::read(&self.0, place.range.offset, place.range.length)
    }
}
