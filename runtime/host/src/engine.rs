use crate::bindings::Contract;
use crate::clock::{TICK, TickClock};
use crate::state::State;
use mortise_types::{Error, Result};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Core instances that a component may have inside, on average: a component of
/// Rust has three, one of Python or JavaScript more than ten.
const CORE_INSTANCES_PER_PLUGIN: u32 = 20;
const TABLES_PER_PLUGIN: u32 = 8;
/// A larger table is not pooled.
const POOLED_TABLE_ELEMENTS: usize = 20_000;
/// Memory that a slot keeps between two instances instead of giving it back to
/// the system and faulting it in again.
const KEEP_RESIDENT_BYTES: usize = 128 << 10;

/// The engines that plugins run on. Both read the same machine code.
pub(crate) struct Engines {
    /// Instances in slots reserved beforehand.
    pub pooled: Flavour,
    /// For instances that find no slot or fit in none.
    pub spare: Flavour,
    /// Advances with the epoch of both.
    pub clock: TickClock,
}

pub(crate) struct Flavour {
    pub engine: Engine,
    pub linker: Linker<State>,
}

impl Engines {
    pub(crate) fn new(max_instances: u32) -> Result<Self> {
        let pooled = Flavour::pooled(max_instances)?;
        let spare = Flavour::new(&self::config())?;
        let engines = Self { pooled, spare, clock: TickClock::default() };
        start_ticker(&engines)?;
        Ok(engines)
    }

    /// Identifies the machine code that these engines can run.
    pub(crate) fn compatibility(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.pooled.engine.precompile_compatibility_hash().hash(&mut hasher);
        hasher.finish()
    }
}

impl Flavour {
    /// Reserves address space for `max_instances`, or for fewer where a limit
    /// on the process (`ulimit -v`, a container's) does not allow as much.
    fn pooled(max_instances: u32) -> Result<Self> {
        let mut instances = max_instances.max(1);
        loop {
            let mut config = config();
            config.allocation_strategy(pooling(instances));
            match Self::new(&config) {
                Err(error) if instances > 1 => {
                    tracing::warn!("{error}; pooling {} instances instead", instances / 2);
                    instances /= 2;
                }
                end => return end,
            }
        }
    }

    fn new(config: &Config) -> Result<Self> {
        let start = || -> wasmtime::Result<Self> {
            let engine = Engine::new(config)?;
            let mut linker = Linker::new(&engine);
            Contract::add_to_linker::<_, HasSelf<State>>(&mut linker, |state| state)?;
            Ok(Self { engine, linker })
        };
        start()
            .map_err(|error| Error::internal(format!("cannot start the plugin engine: {error:#}")))
    }
}

/// The settings that machine code depends on. The worker that compiles and the
/// server that runs must agree on them.
pub(crate) fn config() -> Config {
    let mut config = Config::new();
    config
        .concurrency_support(false)
        .epoch_interruption(true)
        .memory_reservation(4 << 30)
        // Nothing unwinds through a plugin's frames or maps their addresses
        // back, so do not write, map and register the tables for it.
        .native_unwind_info(false)
        .generate_address_map(false);
    config
}

fn pooling(max_instances: u32) -> InstanceAllocationStrategy {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(max_instances)
        .total_core_instances(max_instances.saturating_mul(CORE_INSTANCES_PER_PLUGIN))
        .total_memories(max_instances)
        .total_tables(max_instances.saturating_mul(TABLES_PER_PLUGIN))
        .max_tables_per_module(TABLES_PER_PLUGIN)
        .table_elements(POOLED_TABLE_ELEMENTS)
        .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
        .table_keep_resident(KEEP_RESIDENT_BYTES);
    InstanceAllocationStrategy::Pooling(pool)
}

/// How long the ticker sleeps at a time while no plugin runs; then it looks
/// whether the engines are still there.
const REST: Duration = Duration::from_secs(1);

/// Advances the epoch of both engines every [`TICK`] while plugins run, until
/// they are dropped.
fn start_ticker(engines: &Engines) -> Result<()> {
    let weak = [engines.pooled.engine.weak(), engines.spare.engine.weak()];
    let clock = engines.clock.clone();
    let tick = move || loop {
        clock.rest(REST);
        std::thread::sleep(TICK);
        let mut alive = false;
        // Before the epoch: who it wakes must see it.
        clock.advance();
        for engine in weak.iter().filter_map(wasmtime::EngineWeak::upgrade) {
            engine.increment_epoch();
            alive = true;
        }
        if !alive {
            return;
        }
    };
    std::thread::Builder::new()
        .name("plugin-clock".into())
        .spawn(tick)
        .map(drop)
        .map_err(|error| Error::internal(format!("cannot start the plugin clock: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_engines_run_the_same_machine_code() {
        let engines = Engines::new(4).unwrap();
        let hash = |engine: &Engine| {
            let mut hasher = DefaultHasher::new();
            engine.precompile_compatibility_hash().hash(&mut hasher);
            hasher.finish()
        };
        assert_eq!(hash(&engines.spare.engine), engines.compatibility());
    }
}
