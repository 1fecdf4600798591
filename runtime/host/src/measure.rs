use crate::instance::{Instance, Loaded};
use crate::log::LogGate;
use crate::state::Shared;
use crate::{
    Compiled, GraphBudget, GraphRunner, Host, HostConfig, PluginLimits, PreparedGraph, Verified,
};
use mortise_types::{Assets, Bytes, Error, GraphDef, Result, RunControl, Tensor};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Elements of the tensor that is copied in.
const ELEMENTS: usize = 4096;
const READS: usize = 64;

/// What crossing into a plugin and loading one costs: medians.
#[derive(Clone, Copy, Debug)]
pub struct Measurements {
    /// A call without tensors.
    pub call_us: f64,
    /// A call with one tensor lent to the plugin.
    pub call_tensor_us: f64,
    /// 4,096 floats copied into the plugin.
    pub list_f32_4096_us: f64,
    pub instantiate_us: f64,
    /// From a verified component to linked code, the machine code cached.
    pub load_cached_us: f64,
    /// The same with nothing cached: in the child process.
    pub compile_ms: f64,
}

/// What is measured: components of `tests/guests`.
pub struct Subjects {
    /// `measure`, for everything but compiling.
    pub calls: Bytes,
    /// `apply`, the plugin that is compiled.
    pub small: Bytes,
}

/// Measures on this machine as it is now. `scratch` is an empty folder for
/// caches.
///
/// # Errors
/// When the components are other plugins, or do not load.
pub fn measure(config: &HostConfig, subjects: Subjects, scratch: &Path) -> Result<Measurements> {
    let host = Host::new(HostConfig { cache_dir: scratch.join("warm"), ..config.clone() })?;
    let verified = host.verify(subjects.calls)?;
    let small = host.verify(subjects.small)?;
    let compiled = host.compile(&verified)?;
    let idle = loaded(&host, &compiled, "{}")?;
    let reading = loaded(&host, &compiled, &format!("{{\"reads\": {READS}}}"))?;
    let x = Tensor::from_vec(&[ELEMENTS], vec![0.5f32; ELEMENTS])?;

    let call_us = call_us(idle, None, 20_000)?;
    let call_tensor_us = call_us_of(&host, &compiled, "{}", &x, 20_000)?;
    let reading_us = self::call_us(reading, Some(&x), 400)?;
    Ok(Measurements {
        call_us,
        call_tensor_us,
        list_f32_4096_us: (reading_us - call_tensor_us) / READS as f64,
        instantiate_us: instantiate_us(&host, &compiled)?,
        load_cached_us: load_cached_us(&host, &verified, compiled)?,
        compile_ms: compile_ms(config, &small, scratch)?,
    })
}

/// No graph is built by the plugin that is measured.
struct NoGraphs;

impl GraphRunner for NoGraphs {
    fn prepare(&self, _: &GraphDef, _: &Assets, _: GraphBudget) -> Result<Arc<dyn PreparedGraph>> {
        Err(Error::unsupported("graphs are not measured"))
    }
}

fn shared() -> Arc<Shared> {
    Arc::new(Shared {
        plugin: "measure".into(),
        endpoint: "measure".into(),
        assets: Assets::default(),
        limits: Arc::new(PluginLimits::default()),
        runner: Arc::new(NoGraphs),
        log: LogGate::new(0),
        limits_hit: Default::default(),
    })
}

fn new_instance(host: &Host, compiled: &Compiled, shared: &Arc<Shared>) -> Result<Instance> {
    Instance::new(host, &compiled.code, compiled.world(), shared).map_err(|failure| failure.error)
}

fn loaded(host: &Host, compiled: &Compiled, config_json: &str) -> Result<Instance> {
    let mut instance = new_instance(host, compiled, &shared())?;
    match instance.load(config_json).map_err(|failure| failure.error)? {
        Loaded::Custom(_) => Ok(instance),
        Loaded::Direct(_) => Err(Error::invalid("measure a plugin with a custom plan")),
    }
}

fn call_us_of(
    host: &Host,
    compiled: &Compiled,
    config_json: &str,
    input: &Tensor,
    calls: usize,
) -> Result<f64> {
    call_us(loaded(host, compiled, config_json)?, Some(input), calls)
}

/// Batches of calls, since one is shorter than reading the clock is exact.
fn call_us(mut instance: Instance, input: Option<&Tensor>, calls: usize) -> Result<f64> {
    const ROUNDS: usize = 21;
    let control = RunControl::unbounded();
    let per_round = calls / ROUNDS;
    let round = || {
        let start = Instant::now();
        for _ in 0..per_round {
            let inputs = input.cloned().into_iter().collect();
            instance.call(inputs, &control).map_err(|failure| failure.error)?;
        }
        Ok(start.elapsed().as_secs_f64() * 1e6 / per_round as f64)
    };
    median(ROUNDS, round)
}

fn instantiate_us(host: &Host, compiled: &Compiled) -> Result<f64> {
    let shared = shared();
    median(201, || {
        let start = Instant::now();
        let instance = new_instance(host, compiled, &shared)?;
        let taken = start.elapsed();
        drop(instance);
        Ok(taken.as_secs_f64() * 1e6)
    })
}

fn load_cached_us(host: &Host, verified: &Verified, compiled: Compiled) -> Result<f64> {
    // The code must come from the folder, not from an endpoint that uses it.
    drop(compiled);
    median(51, || {
        let start = Instant::now();
        let compiled = host.compile(verified)?;
        let taken = start.elapsed();
        match compiled.from_cache() {
            true => Ok(taken.as_secs_f64() * 1e6),
            false => Err(Error::internal("the artifact cache did not keep the artifact")),
        }
    })
}

fn compile_ms(config: &HostConfig, verified: &Verified, scratch: &Path) -> Result<f64> {
    let mut round = 0;
    median(9, || {
        round += 1;
        let cache_dir = scratch.join(format!("cold-{round}"));
        let host = Host::new(HostConfig { cache_dir, ..config.clone() })?;
        let start = Instant::now();
        host.compile(verified)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    })
}

/// The middle one of an odd number of rounds.
fn median(rounds: usize, mut round: impl FnMut() -> Result<f64>) -> Result<f64> {
    let mut times = (0..rounds).map(|_| round()).collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    times.get(rounds / 2).copied().ok_or_else(|| Error::internal("no rounds"))
}
