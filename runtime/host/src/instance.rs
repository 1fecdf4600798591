use crate::bindings::{Plan, call_of, export_of, types};
use crate::budget::moment_over;
use crate::clock::TickClock;
use crate::failure::{Entry, Failure, explain};
use crate::host::Code;
use crate::limits::Refusal;
use crate::state::{GraphHandle, Shared, State};
use crate::{Host, PreparedGraph, World};
use mortise_types::{CutShort, Error, Result, RunControl, Signature, Tensor};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wasmtime::component::{InstancePre, Resource, TypedFunc};
use wasmtime::{PoolConcurrencyLimitError, Store, StoreContextMut, UpdateDeadline};

type Tensors = Vec<Resource<Tensor>>;
type LoadFn = TypedFunc<(String,), (std::result::Result<Plan, types::Error>,)>;
type CallFn =
    TypedFunc<(&'static [Resource<Tensor>],), (std::result::Result<Tensors, types::Error>,)>;

/// One instance of a plugin in a store of its own: a trap ruins both.
pub(crate) struct Instance {
    store: Store<State>,
    load: LoadFn,
    call: CallFn,
    world: World,
    /// The inputs of the call under way; kept for the next one's.
    lent: Tensors,
}

/// What `load` returned.
pub(crate) enum Loaded {
    Direct(Arc<dyn PreparedGraph>),
    Custom(Signature),
}

impl Instance {
    /// Makes an instance; nothing of the plugin but its start code has run.
    pub(crate) fn new(
        host: &Host,
        code: &Code,
        world: World,
        shared: &Arc<Shared>,
    ) -> Result<Self, Failure> {
        let clock = host.clock();
        let started = match &code.pooled {
            Some(pooled) => Self::start(pooled, world, shared, clock),
            None => Self::start(host.spare(code)?, world, shared, clock),
        };
        match started {
            Err((_, error)) if error.is::<PoolConcurrencyLimitError>() => {
                let spare = host.spare(code)?;
                Self::start(spare, world, shared, clock)
            }
            other => other,
        }
        .map_err(|(mut store, error)| {
            explain(store.data_mut(), Entry::new(world, "its start"), error)
        })
    }

    fn start(
        pre: &InstancePre<State>,
        world: World,
        shared: &Arc<Shared>,
        clock: &TickClock,
    ) -> std::result::Result<Self, (Box<Store<State>>, wasmtime::Error)> {
        let limits = &shared.limits;
        let mut store = Store::new(pre.engine(), State::new(shared.clone(), clock.clone()));
        store.limiter(|state| state);
        store.set_hostcall_fuel(limits.max_list_bytes);
        store.epoch_deadline_callback(at_epoch_deadline);
        begin_load(&mut store);
        match functions(pre, &mut store, world) {
            Ok((load, call)) => Ok(Self { store, load, call, world, lent: Vec::new() }),
            Err(error) => Err((Box::new(store), error)),
        }
    }

    /// Runs the plugin's `load`.
    pub(crate) fn load(&mut self, config_json: &str) -> Result<Loaded, Failure> {
        begin_load(&mut self.store);
        let result = self.load.call(&mut self.store, (config_json.to_owned(),));
        match self.settle("load", result)? {
            Plan::Direct(graph) => {
                let GraphHandle(graph) = self.take(|state| state.graphs.remove(graph))?;
                Ok(Loaded::Direct(graph))
            }
            Plan::Custom(signature) => Ok(Loaded::Custom(signature.into())),
        }
    }

    /// Runs `predict` or `apply`.
    pub(crate) fn call(
        &mut self,
        inputs: Vec<Tensor>,
        control: &RunControl,
    ) -> Result<Vec<Tensor>, Failure> {
        let name = call_of(self.world);
        let state = self.store.data_mut();
        state.begin_call(control);
        if let Err(refusal) = state.lend(inputs, &mut self.lent) {
            return Err(self.refused(name, refusal));
        }
        set_deadline(&mut self.store);
        let result = self.call.call(&mut self.store, (&self.lent,));
        // Also after an error: the instance may live on.
        let taken_back = self.store.data_mut().take_back(&mut self.lent);
        self.take(|_| taken_back)?;
        let outputs = self.settle(name, result)?;
        if outputs.is_empty() {
            return Ok(Vec::new());
        }
        self.take(|state| outputs.into_iter().map(|output| state.release(output)).collect())
    }

    fn refused(&mut self, name: &'static str, refusal: Refusal) -> Failure {
        let state = self.store.data_mut();
        let error = state.trap(refusal);
        explain(state, Entry::new(self.world, name), error)
    }

    /// Turns a trap, or an error that the plugin returned, into a failure.
    fn settle<T>(
        &mut self,
        name: &'static str,
        result: wasmtime::Result<(std::result::Result<T, types::Error>,)>,
    ) -> Result<T, Failure> {
        let state = self.store.data_mut();
        match result {
            Ok((Ok(value),)) => Ok(value),
            Ok((Err(error),)) => Err(Failure::returned(state, error.into())),
            Err(error) => Err(explain(state, Entry::new(self.world, name), error)),
        }
    }

    /// Takes handles back from the plugin.
    fn take<T>(
        &mut self,
        take: impl FnOnce(&mut State) -> wasmtime::Result<T>,
    ) -> Result<T, Failure> {
        let state = self.store.data_mut();
        let name = call_of(self.world);
        take(state).map_err(|error| explain(state, Entry::new(self.world, name), error))
    }
}

fn functions(
    pre: &InstancePre<State>,
    store: &mut Store<State>,
    world: World,
) -> wasmtime::Result<(LoadFn, CallFn)> {
    let component = pre.component();
    let missing = |name: &str| wasmtime::Error::msg(format!("the export {name} is missing"));
    let api = component.get_export_index(None, export_of(world));
    let find = |name: &str| component.get_export_index(api.as_ref(), name).ok_or(missing(name));
    let (load, call) = (find("load")?, find(call_of(world))?);
    let instance = pre.instantiate(&mut *store)?;
    Ok((instance.get_typed_func(&mut *store, load)?, instance.get_typed_func(&mut *store, call)?))
}

fn begin_load(store: &mut Store<State>) {
    store.data_mut().begin_load();
    set_deadline(store);
}

/// Follows the start of an entry in [`State`].
pub(crate) fn set_deadline(store: &mut Store<State>) {
    let slice = store.data().first_slice();
    store.set_epoch_deadline(slice);
}

/// The clock ticks late rather than early, and host calls pass while it ticks,
/// so that this looks at the real time.
pub(crate) fn at_epoch_deadline(
    mut store: StoreContextMut<'_, State>,
) -> wasmtime::Result<UpdateDeadline> {
    let state = store.data_mut();
    if state.budget.is_brief() && state.budget.moment_is_over(cpu_time()) {
        state.control.cut_short(CutShort::TooLong);
        return Err(state.trap(moment_over()));
    }
    let (tick, now) = (state.clock.now(), Instant::now());
    match state.budget.expired(tick, now) {
        Some(refusal) => Err(state.trap(refusal)),
        None => {
            let slice = state.budget.slice(tick, now);
            state.clock.need(slice);
            Ok(UpdateDeadline::Continue(slice))
        }
    }
}

/// What this thread has used of a core.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a local of the right type.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::of_host(error)
    }
}
