//! What routers and strategies share: an instance outside the pools of models,
//! entered for a short time.

use crate::bindings::types;
use crate::clock::TickClock;
use crate::failure::{Entry, Failure, explain};
use crate::host::Code;
use crate::instance::{at_epoch_deadline, set_deadline};
use crate::log::LogGate;
use crate::state::{Shared, State};
use crate::{Compiled, GraphBudget, GraphRunner, Host, PluginLimits, PreparedGraph, World};
use mortise_types::{Assets, Error, GraphDef, Result, RunControl};
use std::sync::Arc;
use wasmtime::component::{Instance, InstancePre};
use wasmtime::{PoolConcurrencyLimitError, Store};

/// What a policy is loaded with, besides its machine code.
#[derive(Clone)]
pub struct PolicyRequest {
    /// Name of the plugin, for messages and logs.
    pub plugin: String,
    /// Name of the endpoint that it decides for, for messages and logs.
    pub endpoint: String,
    /// A JSON object.
    pub config_json: String,
    pub limits: PluginLimits,
}

/// Machine code of a policy and what its instances share.
pub(crate) struct PolicyCode {
    pub host: Arc<Host>,
    pub compiled: Compiled,
    pub shared: Arc<Shared>,
    pub config_json: String,
}

/// One instance: a trap ruins it.
pub(crate) struct Entered<B> {
    pub store: Store<State>,
    pub bindings: B,
    world: World,
}

impl PolicyCode {
    /// # Errors
    /// `InvalidInput` when the component is of another world.
    pub(crate) fn new(
        host: &Arc<Host>,
        compiled: &Compiled,
        world: World,
        request: PolicyRequest,
    ) -> Result<Self> {
        let PolicyRequest { plugin, endpoint, config_json, limits } = request;
        if compiled.world() != world {
            let is = compiled.world();
            return Err(Error::invalid(format!(
                "plugin \"{plugin}\" is a {is}, and is used as a {world}"
            )));
        }
        let shared = Shared {
            plugin,
            endpoint,
            assets: Assets::default(),
            log: LogGate::new(limits.log_lines_per_second),
            limits: Arc::new(limits),
            runner: Arc::new(NoGraphs),
            limits_hit: Default::default(),
        };
        let (host, compiled) = (host.clone(), compiled.clone());
        Ok(Self { host, compiled, shared: Arc::new(shared), config_json })
    }

    /// Makes an instance; `bind` finds its exports.
    pub(crate) fn enter<B>(
        &self,
        bind: impl Fn(&mut Store<State>, &Instance) -> wasmtime::Result<B>,
    ) -> Result<Entered<B>, Failure> {
        let world = self.compiled.world();
        let code: &Code = &self.compiled.code;
        let clock = self.host.clock();
        let started = match &code.pooled {
            Some(pooled) => start(pooled, &self.shared, clock, &bind),
            None => start(self.host.spare(code)?, &self.shared, clock, &bind),
        };
        let started = match started {
            Err((_, error)) if error.is::<PoolConcurrencyLimitError>() => {
                start(self.host.spare(code)?, &self.shared, clock, &bind)
            }
            other => other,
        };
        match started {
            Ok((store, bindings)) => Ok(Entered { store, bindings, world }),
            Err((mut store, error)) => {
                Err(explain(store.data_mut(), Entry::new(world, "its start"), error))
            }
        }
    }
}

type Started<B> = std::result::Result<(Store<State>, B), (Box<Store<State>>, wasmtime::Error)>;

fn start<B>(
    pre: &InstancePre<State>,
    shared: &Arc<Shared>,
    clock: &TickClock,
    bind: &impl Fn(&mut Store<State>, &Instance) -> wasmtime::Result<B>,
) -> Started<B> {
    let mut store = Store::new(pre.engine(), State::new(shared.clone(), clock.clone()));
    store.limiter(|state| state);
    store.set_hostcall_fuel(shared.limits.max_list_bytes);
    store.epoch_deadline_callback(at_epoch_deadline);
    begin_call(&mut store);
    let bound = pre.instantiate(&mut store).and_then(|instance| bind(&mut store, &instance));
    match bound {
        Ok(bindings) => Ok((store, bindings)),
        Err(error) => Err((Box::new(store), error)),
    }
}

fn begin_call(store: &mut Store<State>) {
    store.data_mut().begin_call(&RunControl::unbounded());
    set_deadline(store);
}

impl<B> Entered<B> {
    /// Calls a function that may refuse.
    pub(crate) fn call<T>(
        &mut self,
        name: &'static str,
        call: impl FnOnce(&B, &mut Store<State>) -> wasmtime::Result<Result<T, types::Error>>,
    ) -> Result<T, Failure> {
        begin_call(&mut self.store);
        match call(&self.bindings, &mut self.store) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Failure::returned(self.store.data_mut(), error.into())),
            Err(error) => Err(self.failed(name, error)),
        }
    }

    /// Says why a call trapped.
    #[cold]
    pub(crate) fn failed(&mut self, name: &'static str, error: wasmtime::Error) -> Failure {
        explain(self.store.data_mut(), Entry::new(self.world, name), error)
    }
}

/// The worlds of policies do not import the interface that builds graphs.
struct NoGraphs;

impl GraphRunner for NoGraphs {
    fn prepare(&self, _: &GraphDef, _: &Assets, _: GraphBudget) -> Result<Arc<dyn PreparedGraph>> {
        Err(Error::unsupported("a policy builds no graphs"))
    }
}
