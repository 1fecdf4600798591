use crate::runner::digest::graph_digest;
use mortise_compute::{Device, Executable, compile_graph};
use mortise_graph::GraphLimits;
use mortise_host::{GraphRunner, PreparedGraph};
use mortise_types::{Assets, GraphDef, Result, RunControl, Signature, Tensor};
use parking_lot::Mutex;
use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

mod digest;

/// Prepares graphs on a device. Equal graphs over equal assets are prepared
/// once, whichever plugin instance, plugin or endpoint asks.
pub struct Runner {
    device: Arc<dyn Device>,
    limits: GraphLimits,
    prepared: Mutex<HashMap<[u8; 32], Arc<Slot>>>,
}

/// The slot of one digest. Its lock is held while the graph is compiled, so
/// that instances loading at the same time wait for one compilation.
#[derive(Default)]
struct Slot(Mutex<Weak<Prepared>>);

/// A graph compiled for the device.
pub(crate) struct Prepared {
    executable: Arc<dyn Executable>,
}

impl Runner {
    pub fn new(device: Arc<dyn Device>, limits: GraphLimits) -> Arc<Self> {
        Arc::new(Self { device, limits, prepared: Mutex::default() })
    }

    fn slot(&self, digest: [u8; 32]) -> Arc<Slot> {
        let mut prepared = self.prepared.lock();
        // Slots that nobody uses and whose graph is gone are swept here, so
        // that the map does not grow with the number of deployments.
        prepared.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.0.lock().strong_count() > 0);
        prepared.entry(digest).or_default().clone()
    }
}

impl GraphRunner for Runner {
    fn prepare(&self, def: &GraphDef, assets: &Assets) -> Result<Arc<dyn PreparedGraph>> {
        let slot = self.slot(graph_digest(def, assets));
        let mut known = slot.0.lock();
        if let Some(prepared) = known.upgrade() {
            return Ok(prepared);
        }
        let executable = compile_graph(&*self.device, def, assets, &self.limits)?;
        let prepared = Arc::new(Prepared { executable });
        *known = Arc::downgrade(&prepared);
        Ok(prepared)
    }
}

impl Prepared {
    pub(crate) fn memory_bytes(&self) -> u64 {
        let footprint = self.executable.footprint();
        footprint.weight_bytes as u64 + footprint.peak_arena_bytes as u64
    }
}

impl PreparedGraph for Prepared {
    fn signature(&self) -> &Signature {
        self.executable.signature()
    }

    fn rows_independent(&self) -> bool {
        self.executable.rows_independent()
    }

    fn run(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Vec<Tensor>> {
        self.executable.execute(inputs, control)?.wait()
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::relu_graph;
    use mortise_compute::{CpuDevice, CpuOptions};

    #[test]
    fn equal_graphs_are_compiled_once_and_let_go() {
        let runner = Runner::new(CpuDevice::new(CpuOptions { threads: 1 }), GraphLimits::default());
        let address = |graph: &Arc<dyn PreparedGraph>| Arc::as_ptr(graph).cast::<u8>();
        let first = runner.prepare(&relu_graph(), &Assets::default()).unwrap();
        let same = runner.prepare(&relu_graph(), &Assets::default()).unwrap();
        assert_eq!(address(&first), address(&same));
        let input = Tensor::from_vec(&[2], vec![-1.0f32, 2.0]).unwrap();
        let outputs = same.run(vec![input], &RunControl::unbounded()).unwrap();
        assert_eq!(outputs[0].as_slice::<f32>().unwrap(), [0.0, 2.0]);

        let mut other = relu_graph();
        other.output_names[0] = "z".to_string();
        let kept = runner.prepare(&other, &Assets::default()).unwrap();
        assert_ne!(address(&first), address(&kept));
        drop((first, same));
        runner.slot([0; 32]);
        assert_eq!(runner.prepared.lock().len(), 2, "one graph in use and the slot just made");
    }
}
