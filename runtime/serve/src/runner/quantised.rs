//! Runners for models whose weights are put into fewer bits: one that builds
//! them as they are, to compare with and to watch, and one that rewrites them.

use super::digest::graph_digest;
use super::{CompiledGraph, Runner};
use mortise_compute::{compile_observed, compile_quantised};
use mortise_graph::{Precision, QuantReport, Quantisation, Ranges};
use mortise_host::{GraphBudget, GraphRunner, PreparedGraph};
use mortise_types::{Assets, GraphDef, Result, Tensor, ValueId};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Ranges of activations by the digest of their graph, in hexadecimal.
pub type GraphRanges = BTreeMap<String, Ranges>;

/// What was made of all graphs of one plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuantSummary {
    /// Of all graphs together.
    pub report: QuantReport,
    /// Bytes that devices hold for the weights, packed copies included.
    pub device_bytes: u64,
}

/// Builds graphs in floats, and sees what their activations hold.
pub struct Baseline {
    runner: Arc<Runner>,
    /// Whether ranges are wanted; graphs are otherwise shared with others.
    observes: bool,
    graphs: Mutex<BTreeMap<[u8; 32], Arc<CompiledGraph>>>,
}

/// Builds graphs with weights in fewer bits.
pub struct Quantiser {
    runner: Arc<Runner>,
    precision: Precision,
    ranges: GraphRanges,
    summaries: Mutex<BTreeMap<[u8; 32], QuantSummary>>,
}

/// The ranges seen in one graph.
pub(super) struct Observed {
    /// In the order of the outputs behind those of the signature.
    values: Vec<ValueId>,
    ranges: Mutex<Ranges>,
}

impl Observed {
    pub(super) fn see(&self, activations: &[Tensor]) {
        let mut ranges = self.ranges.lock();
        for (value, tensor) in self.values.iter().zip(activations) {
            let Ok(numbers) = tensor.as_slice::<f32>() else { continue };
            let range = ranges.entry(value.0).or_insert([0.0, 0.0]);
            for number in numbers.iter().filter(|number| number.is_finite()) {
                *range = [range[0].min(*number), range[1].max(*number)];
            }
        }
    }
}

impl Baseline {
    pub(crate) fn new(runner: Arc<Runner>, observes: bool) -> Arc<Self> {
        Arc::new(Self { runner, observes, graphs: Mutex::default() })
    }

    /// Graphs prepared so far.
    pub fn graph_count(&self) -> usize {
        self.graphs.lock().len()
    }

    /// What was seen so far.
    pub fn ranges(&self) -> GraphRanges {
        let graphs = self.graphs.lock();
        let seen = graphs.iter().filter_map(|(digest, prepared)| {
            let observed = prepared.observed.as_ref()?;
            Some((hex(digest), observed.ranges.lock().clone()))
        });
        seen.collect()
    }

    /// Bytes that devices hold for the weights, packed copies included.
    pub fn device_bytes(&self) -> u64 {
        self.graphs.lock().values().map(|prepared| prepared.weight_bytes()).sum()
    }
}

impl GraphRunner for Baseline {
    fn prepare(
        &self,
        def: &GraphDef,
        assets: &Assets,
        budget: GraphBudget,
    ) -> Result<Arc<dyn PreparedGraph>> {
        let digest = graph_digest(def, assets);
        let mut graphs = self.graphs.lock();
        if let Some(prepared) = graphs.get(&digest) {
            return Ok(prepared.clone());
        }
        let prepared = match self.observes {
            false => self.runner.prepare_plain(def, assets, budget)?,
            true => {
                let (device, limits) = (&self.runner.device, &self.runner.limits_of(budget));
                let (executable, values) = compile_observed(&**device, def, assets, limits)?;
                let observed = Observed { values, ranges: Mutex::default() };
                Arc::new(CompiledGraph {
                    observed: Some(observed),
                    ..CompiledGraph::new(executable, def, assets, budget)
                })
            }
        };
        graphs.insert(digest, prepared.clone());
        Ok(prepared)
    }
}

impl Quantiser {
    pub(crate) fn new(runner: Arc<Runner>, precision: Precision, ranges: GraphRanges) -> Arc<Self> {
        Arc::new(Self { runner, precision, ranges, summaries: Mutex::default() })
    }

    /// What was made of the graphs so far.
    pub fn summary(&self) -> QuantSummary {
        let mut total = QuantSummary::default();
        for QuantSummary { report, device_bytes } in self.summaries.lock().values() {
            total.device_bytes += device_bytes;
            total.report.products += report.products;
            total.report.tables += report.tables;
            total.report.float_bytes += report.float_bytes;
            total.report.bytes += report.bytes;
            total.report.left.extend(report.left.iter().cloned());
        }
        total
    }
}

impl GraphRunner for Quantiser {
    fn prepare(
        &self,
        def: &GraphDef,
        assets: &Assets,
        budget: GraphBudget,
    ) -> Result<Arc<dyn PreparedGraph>> {
        let digest = graph_digest(def, assets);
        let ranges = self.ranges.get(&hex(&digest)).cloned().unwrap_or_default();
        let how = Quantisation { precision: self.precision, ranges };
        let prepared = self.runner.share((quantised_digest(&digest, &how), budget), |runner| {
            let (device, limits) = (&runner.device, &runner.limits_of(budget));
            let (executable, report) = compile_quantised(&**device, def, assets, limits, &how)?;
            Ok(CompiledGraph {
                quantised: Some((self.precision, report)),
                ..CompiledGraph::new(executable, def, assets, budget)
            })
        })?;
        let summary = QuantSummary {
            report: prepared
                .quantised
                .as_ref()
                .map_or_else(QuantReport::default, |(_, r)| r.clone()),
            device_bytes: prepared.weight_bytes(),
        };
        self.summaries.lock().insert(digest, summary);
        Ok(prepared)
    }
}

/// A graph and everything that decides what is made of it.
fn quantised_digest(graph: &[u8; 32], how: &Quantisation) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(graph);
    hash.update(how.precision.name());
    for (value, range) in &how.ranges {
        hash.update(value.to_le_bytes());
        range.iter().for_each(|bound| hash.update(bound.to_bits().to_le_bytes()));
    }
    hash.finalize().into()
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
