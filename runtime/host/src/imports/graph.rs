use super::assets::{outside, range_of};
use super::shape_of;
use crate::GraphBudget;
use crate::bindings::graph::{self as wit, Host, HostBuilder, HostGraph};
use crate::bindings::types::{self, Dtype};
use crate::limits::Refusal;
use crate::recorder::{NewAttribute, NewNode, Recorder};
use crate::state::{GraphHandle, Shared, State};
use mortise_types::{Attribute, CutShort, DType, Error, Tensor, ValueId, WeightRef};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;
use wasmtime::component::Resource;

type Answer<T> = wasmtime::Result<Result<T, types::Error>>;

impl Host for State {}

impl HostBuilder for State {
    fn new(&mut self) -> wasmtime::Result<Resource<Recorder>> {
        self.enter_host()?;
        let recorder = Recorder::new(self.shared.limits.clone());
        // The contract's constructor cannot fail, so the limit is a trap here.
        self.hold_builder(recorder).map_err(|refusal| self.trap(refusal))
    }

    fn input(&mut self, builder: Resource<Recorder>, spec: types::TensorSpec) -> Answer<u32> {
        self.record(&builder, |recorder| recorder.input(spec.into()).map(number))
    }

    fn constant(&mut self, builder: Resource<Recorder>, value: Resource<Tensor>) -> Answer<u32> {
        let tensor = self.tensors.get(&value)?.clone();
        self.record(&builder, |recorder| recorder.constant(tensor).map(number))
    }

    fn weight(
        &mut self,
        builder: Resource<Recorder>,
        asset: String,
        offset: u64,
        length: u64,
        dtype: Dtype,
        shape: Vec<u64>,
    ) -> Answer<u32> {
        let weight = self.weight_ref(asset, offset, length, dtype.into(), &shape);
        self.record(&builder, |recorder| recorder.weight(weight?).map(number))
    }

    fn op(&mut self, builder: Resource<Recorder>, node: wit::Node) -> Answer<Vec<u32>> {
        let node = self.new_node(node)?;
        self.record(&builder, |recorder| recorder.op(node).map(numbers))
    }

    fn begin_subgraph(
        &mut self,
        builder: Resource<Recorder>,
        input_count: u32,
    ) -> Answer<Vec<u32>> {
        self.record(&builder, |recorder| recorder.begin_subgraph(input_count).map(numbers))
    }

    fn end_subgraph(&mut self, builder: Resource<Recorder>, outputs: Vec<u32>) -> Answer<u32> {
        self.record(&builder, |recorder| recorder.end_subgraph(&outputs))
    }

    fn output(&mut self, builder: Resource<Recorder>, name: String, value: u32) -> Answer<()> {
        self.record(&builder, |recorder| recorder.output(name, value))
    }

    fn finish(&mut self, builder: Resource<Recorder>) -> Answer<Resource<GraphHandle>> {
        self.enter_host()?;
        let recorder = self.builders.remove(builder)?;
        let graph = self.prepare(recorder).and_then(|graph| self.hold_graph(graph));
        self.answer(graph)
    }

    fn drop(&mut self, builder: Resource<Recorder>) -> wasmtime::Result<()> {
        self.builders.remove(builder).map(drop)
    }
}

impl HostGraph for State {
    fn signature(&mut self, graph: Resource<GraphHandle>) -> wasmtime::Result<types::Signature> {
        self.enter_host()?;
        Ok(self.graphs.get(&graph)?.0.signature().into())
    }

    fn run(
        &mut self,
        graph: Resource<GraphHandle>,
        inputs: Vec<Resource<Tensor>>,
    ) -> Answer<Vec<Resource<Tensor>>> {
        self.enter_host()?;
        let graph = self.graphs.get(&graph)?.0.clone();
        let inputs = inputs
            .iter()
            .map(|input| self.tensors.get(input).cloned())
            .collect::<Result<Vec<_>, _>>()?;

        let start = Instant::now();
        let control = self.budget.graph_control(&self.control, start);
        self.clock.need(self.budget.graph_ticks());
        let result = shielded("run", || graph.run(inputs, &control)).map_err(Refusal::from);
        let spent = self.budget.spent_on_graph(start.elapsed());
        if spent.is_err() && self.budget.is_brief() {
            self.control.cut_short(CutShort::TooLong);
        }
        let outputs = spent.and(result).and_then(|outputs| self.hold_all(outputs));
        self.answer(outputs)
    }

    fn drop(&mut self, graph: Resource<GraphHandle>) -> wasmtime::Result<()> {
        self.graphs.remove(graph).map(drop)
    }
}

impl State {
    fn record<T>(
        &mut self,
        builder: &Resource<Recorder>,
        action: impl FnOnce(&mut Recorder) -> Result<T, Refusal>,
    ) -> Answer<T> {
        self.enter_host()?;
        let result = action(self.builders.get_mut(builder)?);
        self.answer(result)
    }

    fn prepare(&self, recorder: Recorder) -> Result<GraphHandle, Refusal> {
        let def = recorder.finish()?;
        let Shared { runner, assets, limits, .. } = &*self.shared;
        let budget = GraphBudget {
            max_device_bytes: limits.max_graph_device_bytes,
            max_dispatches: limits.max_graph_dispatches,
        };
        let prepared = shielded("prepare", || runner.prepare(&def, assets, budget));
        Ok(GraphHandle(prepared?))
    }

    fn weight_ref(
        &self,
        asset: String,
        offset: u64,
        length: u64,
        dtype: DType,
        shape: &[u64],
    ) -> Result<WeightRef, Error> {
        let size = self.shared.assets.get(&asset)?.bytes.len();
        range_of(size, offset, length).ok_or_else(|| outside(&asset, size, offset, length))?;
        let shape = shape_of(shape)?;
        let count = shape.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
        let want = count.and_then(|count| dtype.byte_len(count));
        if want.is_none_or(|want| want as u64 != length) {
            return Err(Error::invalid(format!(
                "a weight of {dtype} and shape {:?} does not take {length} bytes",
                shape.as_slice()
            )));
        }
        Ok(WeightRef { asset: asset.into(), offset, length, dtype, shape })
    }

    fn new_node(&self, node: wit::Node) -> wasmtime::Result<NewNode> {
        let attributes = node
            .attributes
            .into_iter()
            .map(|attribute| Ok((attribute.name, self.new_attribute(attribute.value)?)))
            .collect::<wasmtime::Result<_>>()?;
        Ok(NewNode {
            domain: node.domain,
            op: node.op,
            opset: node.opset,
            name: node.name,
            inputs: node.inputs,
            attributes,
            output_count: node.output_count,
        })
    }

    fn new_attribute(&self, value: wit::Attribute) -> wasmtime::Result<NewAttribute> {
        Ok(NewAttribute::Value(match value {
            wit::Attribute::Int(value) => Attribute::Int(value),
            wit::Attribute::Float(value) => Attribute::Float(value),
            wit::Attribute::Text(value) => Attribute::String(value),
            wit::Attribute::Tensor(value) => Attribute::Tensor(self.tensors.get(&value)?.clone()),
            wit::Attribute::Graph(handle) => return Ok(NewAttribute::Subgraph(handle)),
            wit::Attribute::Ints(value) => Attribute::Ints(value),
            wit::Attribute::Floats(value) => Attribute::Floats(value),
            wit::Attribute::Texts(value) => Attribute::Strings(value),
        }))
    }
}

/// Runs graph code on hostile input. A panic there is a bug of the host's; it
/// costs the one call and not the process.
fn shielded<T>(what: &str, action: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(action)).unwrap_or_else(|_| {
        Err(Error::internal(format!("the graph compiler panicked in {what}; see the log")))
    })
}

fn number(id: ValueId) -> u32 {
    id.0
}

fn numbers(ids: Vec<ValueId>) -> Vec<u32> {
    ids.into_iter().map(number).collect()
}
