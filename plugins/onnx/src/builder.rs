//! The importer's output and files when it runs as a plugin.

use crate::import::Files;
use crate::proto::{Tensor as Parsed, TensorData};
use crate::reader::Source;
use crate::sink::{Argument, Call, Place, Sink};
use mortise_plugin_sdk::{
    Assets, Attribute, DType, Error, GraphBuilder, Result, Subgraph, Tensor, TensorSpec, Value,
};

/// The host's graph builder.
pub(crate) struct HostSink<'a>(pub(crate) &'a GraphBuilder);

impl Sink for HostSink<'_> {
    type Value = Value;
    type Subgraph = Subgraph;

    fn input(&mut self, spec: &TensorSpec) -> Result<Value> {
        self.0.input(spec)
    }

    fn constant(&mut self, tensor: &Parsed) -> Result<Value> {
        self.0.constant(&host_tensor(tensor)?)
    }

    fn weight(&mut self, place: Place<'_>, dtype: DType, dims: &[u64]) -> Result<Value> {
        self.0.weight(place.asset, place.range, dtype, dims)
    }

    fn node(&mut self, call: Call<'_, Value, Subgraph>) -> Result<Vec<Value>> {
        let mut node = self.0.node(call.op).domain(call.domain, call.opset).name(call.name);
        for input in call.inputs {
            node = node.optional(input);
        }
        for (name, argument) in call.attributes {
            node = node.attribute(name, attribute(argument)?);
        }
        node.outputs(call.output_count)
    }

    fn begin_subgraph(&mut self, input_count: u32) -> Result<Vec<Value>> {
        self.0.begin_subgraph(input_count)
    }

    fn end_subgraph(&mut self, outputs: &[Value]) -> Result<Subgraph> {
        self.0.end_subgraph(outputs)
    }

    fn output(&mut self, name: &str, value: Value) -> Result<()> {
        self.0.output(name, value)
    }
}

fn attribute(argument: Argument<'_, Subgraph>) -> Result<Attribute> {
    Ok(match argument {
        Argument::Int(value) => value.into(),
        Argument::Float(value) => value.into(),
        Argument::Text(value) => value.to_vec().into(),
        Argument::Tensor(tensor) => host_tensor(&tensor)?.into(),
        Argument::Graph(subgraph) => subgraph.into(),
        Argument::Ints(values) => values.into(),
        Argument::Floats(values) => values.into(),
        Argument::Texts(values) => values.to_vec().into(),
    })
}

fn host_tensor(tensor: &Parsed) -> Result<Tensor> {
    let shape: Result<Vec<usize>, _> =
        tensor.dims.iter().map(|&dim| usize::try_from(dim)).collect();
    match &tensor.data {
        TensorData::Bytes(bytes) => Tensor::from_bytes(tensor.dtype, &shape?, bytes),
        TensorData::Strings(strings) => Tensor::from_strings(&shape?, strings),
        TensorData::File(_) | TensorData::External { .. } => {
            Err(Error::failed(format!("tensor \"{}\" was not read", tensor.name)))
        }
    }
}

/// The assets of the deployment.
pub(crate) struct AssetFiles {
    assets: Assets,
    model: String,
}

impl AssetFiles {
    /// Finds the model among the assets: the one called `model`, or the only
    /// one that ends in `.onnx`.
    pub(crate) fn find(assets: Assets) -> Result<Self> {
        let names = assets.names();
        let model = model_name(&names)?.to_owned();
        Ok(Self { assets, model })
    }
}

fn model_name(names: &[String]) -> Result<&str> {
    if let Some(name) = names.iter().find(|name| *name == "model") {
        return Ok(name);
    }
    let mut onnx = names.iter().filter(|name| name.ends_with(".onnx"));
    match (onnx.next(), onnx.next()) {
        (Some(name), None) => Ok(name),
        _ => Err(Error::invalid(format!(
            "one asset must be called \"model\" or be the only one to end in \".onnx\"; there are \
             {names:?}"
        ))),
    }
}

impl Files for AssetFiles {
    fn model(&self) -> &str {
        &self.model
    }

    fn external(&self, location: &str) -> Result<(String, u64)> {
        let names = self.assets.names();
        let name = external_name(location, &names)?;
        Ok((name.to_owned(), self.assets.len(name)?))
    }

    fn read(&self, place: Place<'_>) -> Result<Vec<u8>> {
        let (mut bytes, end) = (Vec::new(), place.range.offset + place.range.length);
        let mut position = place.range.offset;
        while position < end {
            let length = (end - position).min(Assets::MAX_READ_BYTES);
            bytes.extend(self.assets.read(place.asset, position, length)?);
            position += length;
        }
        Ok(bytes)
    }
}

/// The asset that an external tensor's path means: the same path, or the same
/// file name.
fn external_name<'n>(location: &str, names: &'n [String]) -> Result<&'n str> {
    let path = location.trim_start_matches("./");
    let file = path.rsplit('/').next().unwrap_or(path);
    let found = names.iter().find(|name| *name == path).or(names.iter().find(|name| *name == file));
    found.map(String::as_str).ok_or_else(|| {
        Error::invalid(format!(
            "its data lies in the file \"{location}\", which was not deployed with the model; there \
             are {names:?}"
        ))
    })
}

impl Source for AssetFiles {
    fn size(&self) -> Result<u64> {
        self.assets.len(&self.model)
    }

    fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>> {
        self.assets.read(&self.model, offset, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_and_its_external_files_are_found() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(model_name(&names(&["model", "x.onnx"])).unwrap(), "model");
        assert_eq!(model_name(&names(&["w.bin", "x.onnx"])).unwrap(), "x.onnx");
        assert!(model_name(&names(&["y.onnx", "x.onnx"])).is_err());
        let files = names(&["model", "model.onnx.data"]);
        assert_eq!(external_name("./model.onnx.data", &files).unwrap(), "model.onnx.data");
        assert_eq!(external_name("dir/model.onnx.data", &files).unwrap(), "model.onnx.data");
        assert!(external_name("other", &files).unwrap_err().message().contains("\"other\""));
    }
}
