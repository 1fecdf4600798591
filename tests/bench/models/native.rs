//! ONNX files into graphs without a plugin host: the plugin's importer, writing
//! down what the host's builder would record.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use mortise_compute::{CpuDevice, Executable, compile_graph};
use mortise_graph::GraphLimits;
use mortise_types::{
    Asset, Assets, Attribute, Bytes, DType, GraphBody, GraphDef, NodeDef, Strings, Tensor,
    TensorSpec, ValueDef, ValueId, ValueSource, WeightRef,
};
use plugin_onnx::import::{Files, Options, import};
use plugin_onnx::proto::{self, TensorData};
use plugin_onnx::reader::{File, Source};
use plugin_onnx::sink::{Argument, Call, Place, Sink};

/// Name of the only asset.
const MODEL: &str = "model";

/// What the importer's traits return; they are the SDK's.
type Imported<T> = mortise_plugin_sdk::Result<T>;

/// Compiles a file for `device`.
pub(crate) fn compile(device: &CpuDevice, path: &Path) -> Result<Arc<dyn Executable>> {
    let (graph, assets) = load(path)?;
    compile_graph(device, &graph, &assets, &GraphLimits::default())
        .map_err(|error| anyhow!("{}: {error}", path.display()))
}

/// The graph of a file, and the asset that its weights are in.
pub(crate) fn load(path: &Path) -> Result<(GraphDef, Assets)> {
    let file = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let bytes = Bytes::from(file);
    let graph = graph(&bytes).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    let asset = Asset { digest: "".into(), bytes };
    Ok((graph, Assets::new(BTreeMap::from([(MODEL.to_owned(), asset)]))))
}

fn graph(bytes: &[u8]) -> Imported<GraphDef> {
    let memory = Memory(bytes);
    let model = proto::read_model(&File::open(&memory)?)?;
    let mut recorder = Recorder::default();
    import(&model, &memory, &Options::default(), &mut recorder)?;
    Ok(recorder.graph)
}

/// Writes a graph down; `outer` holds the bodies around an open subgraph.
#[derive(Default)]
struct Recorder {
    graph: GraphDef,
    outer: Vec<GraphBody>,
}

impl Recorder {
    fn value(&mut self, source: ValueSource) -> ValueId {
        let id = ValueId(self.graph.values.len() as u32);
        self.graph.values.push(ValueDef { name: String::new(), source });
        id
    }
}

impl Sink for Recorder {
    type Value = ValueId;
    type Subgraph = Arc<GraphBody>;

    fn input(&mut self, spec: &mortise_plugin_sdk::TensorSpec) -> Imported<ValueId> {
        let value = self.value(ValueSource::Input);
        self.graph.body.inputs.push(value);
        self.graph.inputs.push(TensorSpec::new(&spec.name, dtype(spec.dtype)?, &spec.shape));
        Ok(value)
    }

    fn constant(&mut self, tensor: &proto::Tensor) -> Imported<ValueId> {
        let tensor = self::tensor(tensor)?;
        Ok(self.value(ValueSource::Constant(tensor)))
    }

    fn weight(
        &mut self,
        place: Place<'_>,
        kind: mortise_plugin_sdk::DType,
        dims: &[u64],
    ) -> Imported<ValueId> {
        let weight = WeightRef {
            asset: place.asset.into(),
            offset: place.range.offset,
            length: place.range.length,
            dtype: dtype(kind)?,
            shape: dims.iter().map(|&dim| dim as usize).collect(),
        };
        Ok(self.value(ValueSource::Weight(weight)))
    }

    fn node(&mut self, call: Call<'_, ValueId, Arc<GraphBody>>) -> Imported<Vec<ValueId>> {
        let outputs: Vec<ValueId> =
            (0..call.output_count).map(|_| self.value(ValueSource::Node)).collect();
        let attributes: Imported<Vec<_>> = call
            .attributes
            .into_iter()
            .map(|(name, value)| Ok((Arc::from(name), attribute(value)?)))
            .collect();
        self.graph.body.nodes.push(NodeDef {
            domain: call.domain.into(),
            op: call.op.into(),
            opset: call.opset,
            name: call.name.to_owned(),
            inputs: call.inputs,
            attributes: attributes?,
            outputs: outputs.iter().copied().map(Some).collect(),
        });
        Ok(outputs)
    }

    fn begin_subgraph(&mut self, input_count: u32) -> Imported<Vec<ValueId>> {
        let inputs: Vec<ValueId> =
            (0..input_count).map(|_| self.value(ValueSource::Input)).collect();
        let inner = GraphBody { inputs: inputs.clone(), ..GraphBody::default() };
        self.outer.push(std::mem::replace(&mut self.graph.body, inner));
        Ok(inputs)
    }

    fn end_subgraph(&mut self, outputs: &[ValueId]) -> Imported<Arc<GraphBody>> {
        let outer = self.outer.pop().ok_or_else(|| refusal("no subgraph is open"))?;
        let mut inner = std::mem::replace(&mut self.graph.body, outer);
        inner.outputs = outputs.to_vec();
        Ok(Arc::new(inner))
    }

    fn output(&mut self, name: &str, value: ValueId) -> Imported<()> {
        self.graph.body.outputs.push(value);
        self.graph.output_names.push(name.to_owned());
        Ok(())
    }
}

fn refusal(message: impl std::fmt::Display) -> mortise_plugin_sdk::Error {
    mortise_plugin_sdk::Error::invalid(message.to_string())
}

fn dtype(kind: mortise_plugin_sdk::DType) -> Imported<DType> {
    DType::from_onnx(kind.onnx()).ok_or_else(|| refusal(format!("{kind} is not known here")))
}

fn attribute(argument: Argument<'_, Arc<GraphBody>>) -> Imported<Attribute> {
    Ok(match argument {
        Argument::Int(value) => Attribute::Int(value),
        Argument::Float(value) => Attribute::Float(value),
        Argument::Text(value) => Attribute::String(value.to_vec()),
        Argument::Tensor(value) => Attribute::Tensor(tensor(&value)?),
        Argument::Graph(body) => Attribute::Graph(body),
        Argument::Ints(values) => Attribute::Ints(values.to_vec()),
        Argument::Floats(values) => Attribute::Floats(values.to_vec()),
        Argument::Texts(values) => Attribute::Strings(values.to_vec()),
    })
}

fn tensor(tensor: &proto::Tensor) -> Imported<Tensor> {
    let shape: Vec<usize> = tensor.dims.iter().map(|&dim| dim as usize).collect();
    let made = match &tensor.data {
        TensorData::Bytes(bytes) => {
            Tensor::from_bytes(dtype(tensor.dtype)?, &shape, bytes.clone().into())
        }
        TensorData::Strings(strings) => {
            Tensor::from_strings(&shape, strings.iter().collect::<Strings>())
        }
        TensorData::File(_) | TensorData::External { .. } => {
            return Err(refusal(format!("tensor \"{}\" was not read", tensor.name)));
        }
    };
    made.map_err(refusal)
}

/// A model file in memory.
struct Memory<'a>(&'a [u8]);

impl Files for Memory<'_> {
    fn model(&self) -> &str {
        MODEL
    }

    fn external(&self, location: &str) -> Imported<(String, u64)> {
        Err(refusal(format!("models with external data (\"{location}\") are not measured")))
    }

    fn read(&self, place: Place<'_>) -> Imported<Vec<u8>> {
        Source::read(self, place.range.offset, place.range.length)
    }
}

impl Source for Memory<'_> {
    fn size(&self) -> Imported<u64> {
        Ok(self.0.len() as u64)
    }

    fn read(&self, offset: u64, length: u64) -> Imported<Vec<u8>> {
        let range = offset as usize..(offset + length) as usize;
        self.0.get(range).map(<[u8]>::to_vec).ok_or_else(|| refusal("outside of the file"))
    }
}
