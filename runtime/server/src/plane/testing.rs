//! A data plane with models that compute nothing much, for tests.

use super::logging::LogControl;
use super::receiving::BodyBudget;
use super::regions::{RegionSettings, Regions};
use super::{Control, Permits, Plane};
use crate::auth::ApiKeys;
use crate::trace::Tracer;
use mortise_host::{PluginHealth, PluginStats};
use mortise_observe::Observer;
use mortise_serve::{CustomStage, Registry, Revision, RevisionParts, ServeConfig, Stage, StageRun};
use mortise_types::{DType, Error, Result, RunControl, Signature, Tensor, TensorSpec};
use mortise_wire::WireLimits;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Models "m", "sick" and "slow", and "off", which is unloaded. Shared memory
/// is on for keys that begin with "/mortise-".
pub(crate) fn plane(permits: Permits) -> Arc<Plane> {
    plane_for(permits, None)
}

/// The same, for clients with keys.
pub(crate) fn plane_for(permits: Permits, keys: Option<Arc<ApiKeys>>) -> Arc<Plane> {
    let config = ServeConfig { compute_threads: 1, plugin_threads: 2, ..ServeConfig::default() };
    let registry = Registry::new(config).unwrap();
    registry.publish("m", revision("m", Doubler::default()));
    registry.publish("sick", revision("sick", Doubler { is_sick: true, ..Doubler::default() }));
    registry.publish("slow", revision("slow", Doubler { is_slow: true, ..Doubler::default() }));
    registry.withdraw("off", "it was unloaded");
    let prefix = "/mortise-".to_owned();
    let regions = RegionSettings { prefix, max_regions: 4, max_region_bytes: 1 << 20 };
    Arc::new(Plane {
        registry,
        limits: WireLimits::default(),
        observer: Arc::new(Observer::new()),
        tracer: Tracer::off(),
        keys,
        control: Arc::new(FakeControl),
        receiving: BodyBudget::new(1 << 20),
        regions: Arc::new(Regions::new(regions)),
        logging: Arc::new(LogControl::new("info", Box::new(|_| Ok(())))),
        permits,
    })
}

/// Doubles `x`; in quarantine, or slower than any deadline, when told.
#[derive(Default)]
pub(crate) struct Doubler {
    is_sick: bool,
    is_slow: bool,
}

impl CustomStage for Doubler {
    #[expect(clippy::while_immutable_condition, reason = "only the deadline ends it")]
    fn call(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Vec<Tensor>> {
        while self.is_slow {
            control.check()?;
        }
        let x = inputs[0].as_slice::<f32>()?;
        Ok(vec![Tensor::from_vec(inputs[0].shape(), x.iter().map(|x| x * 2.0).collect())?])
    }

    fn health(&self) -> PluginHealth {
        match self.is_sick {
            false => PluginHealth::Ready,
            true => PluginHealth::Quarantined {
                reason: "it trapped".into(),
                retry_in: Duration::from_secs(1),
            },
        }
    }

    fn stats(&self) -> PluginStats {
        PluginStats::default()
    }
}

fn revision(name: &str, model: Doubler) -> Arc<Revision> {
    let stage = Stage {
        name: "doubler".into(),
        digest: "sha256:d".into(),
        transforms: Vec::new(),
        signature: Signature {
            inputs: vec![TensorSpec::new("x", DType::F32, &[-1])],
            outputs: vec![TensorSpec::new("y", DType::F32, &[-1])],
        },
        run: StageRun::Custom(Arc::new(model)),
    };
    let parts = RevisionParts {
        endpoint: name.into(),
        number: 7,
        version: 3,
        options: mortise_serve::ServingOptions::default(),
        stages: vec![stage],
        created: SystemTime::UNIX_EPOCH,
    };
    Arc::new(Revision::new(parts).unwrap())
}

struct FakeControl;

impl Control for FakeControl {
    fn is_ready(&self) -> bool {
        true
    }

    fn load(&self, name: &str) -> Result<()> {
        match name {
            "m" => Ok(()),
            _ => Err(Error::not_found(format!("nothing was deployed as \"{name}\""))),
        }
    }

    fn unload(&self, _: &str) -> Result<()> {
        Ok(())
    }
}
