use crate::runner::digest::graph_digest;
use crate::stage::{Stage, StageRun};
use mortise_compute::{Device, Executable, compile_graph};
use mortise_graph::{GraphLimits, Precision, QuantReport, join, joined_asset};
use mortise_host::{GraphBudget, GraphRunner, PreparedGraph};
use mortise_types::{Assets, GraphDef, Result, RunControl, Signature, Tensor};
use parking_lot::Mutex;
use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

mod digest;
mod quantised;

pub use quantised::{Baseline, GraphRanges, QuantSummary, Quantiser};

/// Prepares graphs on a device. Equal graphs over equal assets are prepared
/// once, whichever plugin instance, plugin or endpoint asks.
pub struct Runner {
    device: Arc<dyn Device>,
    limits: GraphLimits,
    prepared: Mutex<HashMap<Key, Arc<Slot>>>,
}

/// The digest of a graph with its assets, and what it may take: a graph that
/// one plugin may deploy can be too large for another.
type Key = ([u8; 32], GraphBudget);

/// The slot of one digest. Its lock is held while the graph is compiled, so
/// that instances loading at the same time wait for one compilation.
#[derive(Default)]
struct Slot(Mutex<Weak<CompiledGraph>>);

/// A graph compiled for the device, and what it was compiled from.
pub struct CompiledGraph {
    executable: Arc<dyn Executable>,
    def: GraphDef,
    assets: Assets,
    budget: GraphBudget,
    /// What became of the weights, if they are in fewer bits.
    quantised: Option<(Precision, QuantReport)>,
    /// Sees the activations that the executable gives behind its outputs.
    observed: Option<quantised::Observed>,
}

impl Runner {
    pub fn new(device: Arc<dyn Device>, limits: GraphLimits) -> Arc<Self> {
        Arc::new(Self { device, limits, prepared: Mutex::default() })
    }

    fn slot(&self, key: Key) -> Arc<Slot> {
        let mut prepared = self.prepared.lock();
        // Slots that nobody uses and whose graph is gone are swept here, so
        // that the map does not grow with the number of deployments.
        prepared.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.0.lock().strong_count() > 0);
        prepared.entry(key).or_default().clone()
    }
}

impl Runner {
    /// The same stages with the model's graph and those of the transforms right
    /// before it as one, so that nothing is stored and checked in between.
    /// Stages that cannot be joined stay as they are.
    pub(crate) fn fuse(&self, stages: Vec<Stage>) -> Vec<Stage> {
        let custom = stages.iter().rposition(|stage| stage.graph().is_none());
        let first = custom.map_or(0, |at| at + 1);
        match self.fused(&stages[first..]) {
            Some(fused) => stages.into_iter().take(first).chain([fused]).collect(),
            None => stages,
        }
    }

    fn fused(&self, stages: &[Stage]) -> Option<Stage> {
        let (model, transforms) = stages.split_last().filter(|(_, rest)| !rest.is_empty())?;
        let graphs: Vec<_> = stages.iter().map(Stage::graph).collect::<Option<_>>()?;
        let parts: Vec<_> = graphs.iter().map(|graph| (graph.def(), graph.signature())).collect();
        let def = join(&parts)?;
        let prepared = self.prepare(&def, &joined_assets(&graphs), joined_budget(&graphs));
        // What runs alone may break a limit as one.
        let not_fused = |error| {
            let model = model.name.as_str();
            tracing::info!(%error, model, "transforms are not fused with the model");
        };
        let graph = prepared.map_err(not_fused).ok()?;
        let signature = graph.signature().clone();
        Some(Stage {
            name: model.name.clone(),
            digest: model.digest.clone(),
            transforms: transforms.iter().map(|stage| stage.name.clone()).collect(),
            signature,
            run: StageRun::Direct(graph),
        })
    }
}

/// What the plugins of all graphs may take together.
fn joined_budget(graphs: &[Arc<CompiledGraph>]) -> GraphBudget {
    let none = GraphBudget { max_device_bytes: 0, max_dispatches: 0 };
    graphs.iter().fold(none, |sum, graph| GraphBudget {
        max_device_bytes: sum.max_device_bytes.saturating_add(graph.budget.max_device_bytes),
        max_dispatches: sum.max_dispatches.saturating_add(graph.budget.max_dispatches),
    })
}

fn joined_assets(graphs: &[Arc<CompiledGraph>]) -> Assets {
    let mut joined = BTreeMap::new();
    for (index, graph) in graphs.iter().enumerate() {
        for name in graph.assets.names() {
            if let Ok(asset) = graph.assets.get(name) {
                joined.insert(joined_asset(index, name), asset.clone());
            }
        }
    }
    Assets::new(joined)
}

impl Runner {
    fn prepare_plain(
        &self,
        def: &GraphDef,
        assets: &Assets,
        budget: GraphBudget,
    ) -> Result<Arc<CompiledGraph>> {
        self.share((graph_digest(def, assets), budget), |runner| {
            let executable =
                compile_graph(&*runner.device, def, assets, &runner.limits_of(budget))?;
            Ok(CompiledGraph::new(executable, def, assets, budget))
        })
    }

    fn limits_of(&self, budget: GraphBudget) -> GraphLimits {
        let GraphBudget { max_device_bytes, max_dispatches } = budget;
        GraphLimits { max_device_bytes, max_dispatches, ..self.limits.clone() }
    }

    /// The graph of this key, compiled now unless somebody holds it.
    fn share(
        &self,
        key: Key,
        compile: impl FnOnce(&Self) -> Result<CompiledGraph>,
    ) -> Result<Arc<CompiledGraph>> {
        let slot = self.slot(key);
        let mut known = slot.0.lock();
        if let Some(prepared) = known.upgrade() {
            return Ok(prepared);
        }
        let prepared = Arc::new(compile(self)?);
        *known = Arc::downgrade(&prepared);
        Ok(prepared)
    }
}

impl GraphRunner for Runner {
    fn prepare(
        &self,
        def: &GraphDef,
        assets: &Assets,
        budget: GraphBudget,
    ) -> Result<Arc<dyn PreparedGraph>> {
        Ok(self.prepare_plain(def, assets, budget)?)
    }
}

impl CompiledGraph {
    fn new(
        executable: Arc<dyn Executable>,
        def: &GraphDef,
        assets: &Assets,
        budget: GraphBudget,
    ) -> Self {
        let (def, assets) = (def.clone(), assets.clone());
        Self { executable, def, assets, budget, quantised: None, observed: None }
    }

    pub fn executable(&self) -> &Arc<dyn Executable> {
        &self.executable
    }

    /// As the plugin described it.
    pub fn def(&self) -> &GraphDef {
        &self.def
    }

    /// What the weights of [`CompiledGraph::def`] are ranges of.
    pub fn assets(&self) -> &Assets {
        &self.assets
    }

    /// What weights were put into, if they were.
    pub(crate) fn precision(&self) -> Option<Precision> {
        self.quantised.as_ref().map(|(precision, _)| *precision)
    }

    fn weight_bytes(&self) -> u64 {
        self.executable.footprint().weight_bytes as u64
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        let footprint = self.executable.footprint();
        footprint.weight_bytes as u64 + footprint.peak_arena_bytes as u64
    }
}

impl PreparedGraph for CompiledGraph {
    fn signature(&self) -> &Signature {
        self.executable.signature()
    }

    fn rows_independent(&self) -> bool {
        self.executable.rows_independent()
    }

    fn run(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Vec<Tensor>> {
        let mut outputs = self.executable.execute(inputs, control)?.wait()?;
        if let Some(observed) = &self.observed {
            let count = self.signature().outputs.len().min(outputs.len());
            observed.see(&outputs.split_off(count));
        }
        Ok(outputs)
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::revision::Revision;
    use crate::testing::{custom, inputs, parts, relu_graph, spec};
    use mortise_compute::{CpuDevice, CpuOptions};

    const BUDGET: GraphBudget = GraphBudget { max_device_bytes: 1 << 20, max_dispatches: 10 };

    fn stage(runner: &Runner, name: &str, [input, output]: [&str; 2]) -> Stage {
        let mut def = relu_graph();
        def.inputs[0].name = input.to_owned();
        def.output_names[0] = output.to_owned();
        let graph = runner.prepare(&def, &Assets::default(), BUDGET).unwrap();
        let signature = graph.signature().clone();
        let (name, run) = (name.to_owned(), StageRun::Direct(graph));
        Stage { name, digest: String::new(), transforms: Vec::new(), signature, run }
    }

    #[test]
    fn transforms_right_before_the_model_are_fused_with_it() {
        let runner = Runner::new(CpuDevice::new(CpuOptions { threads: 1 }), GraphLimits::default());
        let graphs = || {
            vec![
                stage(&runner, "clip", ["raw", "clean"]),
                stage(&runner, "scale", ["clean", "x"]),
                stage(&runner, "net", ["x", "y"]),
            ]
        };
        let fused = runner.fuse(graphs());
        assert_eq!(fused[0].plugins().collect::<Vec<_>>(), ["clip", "scale", "net"]);
        assert_eq!(fused.len(), 1);
        let (alone, together) = (parts("e", 1, graphs()), parts("e", 2, fused));
        let [alone, together] = [alone, together].map(|parts| Revision::new(parts).unwrap());
        assert_eq!(alone.signature(), together.signature());
        assert!(together.rows_independent());
        let answer = |revision: &Revision| {
            let input = inputs(&[("raw", &[-1.0, 2.0])]);
            let mut outputs = revision.run_blocking(input, &RunControl::unbounded()).unwrap();
            let (name, tensor) = outputs.remove(0);
            (name, tensor.as_slice::<f32>().unwrap().to_vec())
        };
        assert_eq!(answer(&together), ("y".to_owned(), vec![0.0, 2.0]));
        assert_eq!(answer(&alone), answer(&together));

        let same = |inputs| Ok(inputs);
        let custom = custom("text", &[spec("words")], &[spec("raw")], same);
        let fused = runner.fuse([custom].into_iter().chain(graphs()).collect());
        let counts: Vec<usize> = fused.iter().map(|stage| stage.plugins().count()).collect();
        assert_eq!(counts, [1, 3]);
    }

    #[test]
    fn equal_graphs_are_compiled_once_and_let_go() {
        let runner = Runner::new(CpuDevice::new(CpuOptions { threads: 1 }), GraphLimits::default());
        let address = |graph: &Arc<dyn PreparedGraph>| Arc::as_ptr(graph).cast::<u8>();
        let first = runner.prepare(&relu_graph(), &Assets::default(), BUDGET).unwrap();
        let same = runner.prepare(&relu_graph(), &Assets::default(), BUDGET).unwrap();
        assert_eq!(address(&first), address(&same));
        let input = Tensor::from_vec(&[2], vec![-1.0f32, 2.0]).unwrap();
        let outputs = same.run(vec![input], &RunControl::unbounded()).unwrap();
        assert_eq!(outputs[0].as_slice::<f32>().unwrap(), [0.0, 2.0]);

        let mut other = relu_graph();
        other.output_names[0] = "z".to_string();
        let kept = runner.prepare(&other, &Assets::default(), BUDGET).unwrap();
        assert_ne!(address(&first), address(&kept));
        let more = GraphBudget { max_dispatches: 11, ..BUDGET };
        let richer = runner.prepare(&relu_graph(), &Assets::default(), more).unwrap();
        assert_ne!(address(&first), address(&richer), "another budget is another check");
        drop((first, same, richer));
        runner.slot(([0; 32], BUDGET));
        assert_eq!(runner.prepared.lock().len(), 2, "one graph in use and the slot just made");
    }
}
