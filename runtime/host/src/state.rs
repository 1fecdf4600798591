use crate::bindings::types;
use crate::budget::{Budget, CALL_TIMEOUT, LOAD_TIMEOUT};
use crate::clock::TickClock;
use crate::handles::Handles;
use crate::limits::{LimitHit, Refusal};
use crate::log::LogGate;
use crate::recorder::Recorder;
use crate::{GraphRunner, PluginLimits, PreparedGraph};
use mortise_types::{Assets, Error, ErrorKind, RunControl, Tensor};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use wasmtime::ResourceLimiter;
use wasmtime::component::Resource;

/// What all instances of a plugin share.
pub(crate) struct Shared {
    pub plugin: String,
    pub endpoint: String,
    pub assets: Assets,
    pub limits: Arc<PluginLimits>,
    pub runner: Arc<dyn GraphRunner>,
    pub log: LogGate,
    pub limits_hit: Mutex<BTreeMap<&'static str, u64>>,
}

impl Shared {
    /// How messages begin that say something of this plugin.
    pub(crate) fn name(&self) -> String {
        format!("plugin \"{}\" of endpoint \"{}\"", self.plugin, self.endpoint)
    }

    pub(crate) fn count_limit(&self, name: &'static str) {
        *self.limits_hit.lock().entry(name).or_default() += 1;
    }
}

/// A graph that a plugin holds.
#[expect(unreachable_pub, reason = "the generated bindings name it")]
pub struct GraphHandle(pub Arc<dyn PreparedGraph>);

/// The host's side of one instance.
pub(crate) struct State {
    pub shared: Arc<Shared>,
    pub tensors: Handles<Tensor>,
    pub builders: Handles<Recorder>,
    pub graphs: Handles<GraphHandle>,
    pub clock: TickClock,
    pub budget: Budget,
    pub control: RunControl,
    pub calls_left: u64,
    /// The first limit or deadline that was hit since the plugin was entered.
    /// It, and not the trap that may follow, is what the caller is told.
    pub cause: Option<Error>,
    /// The last line the plugin logged as an error since it was entered:
    /// normally a panic message.
    pub last_error_line: Option<String>,
    tensor_bytes: usize,
    memory_bytes: usize,
    table_elements: usize,
}

impl State {
    pub(crate) fn new(shared: Arc<Shared>, clock: TickClock) -> Self {
        let (own, graph) = (shared.limits.load_timeout, shared.limits.graph_timeout);
        let budget = Budget::new(LOAD_TIMEOUT, own, graph, None, clock.now());
        Self {
            shared,
            tensors: Handles::default(),
            builders: Handles::default(),
            graphs: Handles::default(),
            clock,
            budget,
            control: RunControl::unbounded(),
            calls_left: 0,
            cause: None,
            last_error_line: None,
            tensor_bytes: 0,
            memory_bytes: 0,
            table_elements: 0,
        }
    }

    /// Starts an entry to load.
    pub(crate) fn begin_load(&mut self) {
        let limits = &self.shared.limits;
        let (own, graph) = (limits.load_timeout, limits.graph_timeout);
        self.budget = Budget::new(LOAD_TIMEOUT, own, graph, None, self.clock.now());
        self.calls_left = limits.max_host_calls_per_load;
        self.control = RunControl::new(None, RunControl::DEFAULT_LOOP_ITERATIONS);
        self.forget();
    }

    /// Starts an entry to answer a batch.
    pub(crate) fn begin_call(&mut self, control: &RunControl) {
        let limits = &self.shared.limits;
        let (own, graph) = (limits.call_timeout, limits.graph_timeout);
        let (deadline, now) = (control.deadline(), self.clock.now());
        let budget = Budget::new(CALL_TIMEOUT, own, graph, deadline, now);
        self.budget = if control.is_brief() { budget.brief() } else { budget };
        self.calls_left = limits.max_host_calls_per_call;
        self.control = control.clone();
        self.forget();
    }

    /// Starts an entry of another kind, which runs no graphs. Returns the ticks
    /// until it is over.
    pub(crate) fn begin_short(&mut self, name: &'static str, limit: Duration) -> u64 {
        self.budget = Budget::new(name, limit, Duration::ZERO, None, self.clock.now());
        self.calls_left = self.shared.limits.max_host_calls_per_call;
        self.forget();
        self.first_slice()
    }

    /// Ticks of the clock until the time of the entry is first looked at.
    pub(crate) fn first_slice(&self) -> u64 {
        let slice = self.budget.first_slice();
        self.clock.need(slice);
        slice
    }

    fn forget(&mut self) {
        self.cause = None;
        self.last_error_line = None;
    }

    /// Every function that a plugin can call starts with this.
    ///
    /// # Errors
    /// A trap when the plugin called too often.
    pub(crate) fn enter_host(&mut self) -> wasmtime::Result<()> {
        match self.calls_left.checked_sub(1) {
            Some(left) => {
                self.calls_left = left;
                Ok(())
            }
            None => Err(self.calls_exhausted()),
        }
    }

    #[cold]
    fn calls_exhausted(&mut self) -> wasmtime::Error {
        let (calls, loads) = (
            self.shared.limits.max_host_calls_per_call,
            self.shared.limits.max_host_calls_per_load,
        );
        let hit = if self.budget.is_load() {
            LimitHit::count("max_host_calls_per_load", loads)
        } else {
            LimitHit::count("max_host_calls_per_call", calls)
        };
        self.trap(hit.into())
    }

    /// Notes why the plugin is stopped, and makes the trap that stops it.
    pub(crate) fn trap(&mut self, refusal: Refusal) -> wasmtime::Error {
        self.note(&refusal);
        wasmtime::Error::msg(Error::from(refusal).message().to_owned())
    }

    /// Hands a host function's result to the plugin.
    pub(crate) fn answer<T>(
        &mut self,
        result: Result<T, Refusal>,
    ) -> wasmtime::Result<Result<T, types::Error>> {
        Ok(result.map_err(|refusal| {
            self.note(&refusal);
            types::Error::from(Error::from(refusal))
        }))
    }

    /// Remembers a limit or deadline as the cause of what the plugin does next.
    pub(crate) fn note(&mut self, refusal: &Refusal) {
        let error = match refusal {
            Refusal::Limit(hit) => {
                self.shared.count_limit(hit.name);
                Error::limit(hit.to_string())
            }
            Refusal::Other(error) => error.clone(),
        };
        let is_cause = matches!(
            error.kind(),
            ErrorKind::LimitExceeded | ErrorKind::Deadline | ErrorKind::Overloaded
        );
        if is_cause && self.cause.is_none() {
            self.cause = Some(error);
        }
    }

    /// Gives the plugin a tensor.
    pub(crate) fn hold(&mut self, tensor: Tensor) -> Result<Resource<Tensor>, Refusal> {
        let limit = self.shared.limits.max_tensor_bytes;
        let total = self.tensor_bytes.saturating_add(tensor.byte_len());
        if total > limit {
            return Err(LimitHit::count("max_tensor_bytes", limit).into());
        }
        self.room_for_handle()?;
        self.tensor_bytes = total;
        Ok(self.tensors.insert(tensor))
    }

    /// Gives the plugin all of the tensors, or none.
    pub(crate) fn hold_all(
        &mut self,
        tensors: Vec<Tensor>,
    ) -> Result<Vec<Resource<Tensor>>, Refusal> {
        let mut handles = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            match self.hold(tensor) {
                Ok(handle) => handles.push(handle),
                Err(refusal) => {
                    handles.into_iter().for_each(|handle| drop(self.release(handle)));
                    return Err(refusal);
                }
            }
        }
        Ok(handles)
    }

    /// Lends the plugin the inputs of a call: all of them, or none.
    pub(crate) fn lend(
        &mut self,
        tensors: Vec<Tensor>,
        lent: &mut Vec<Resource<Tensor>>,
    ) -> Result<(), Refusal> {
        for tensor in tensors {
            match self.hold(tensor) {
                Ok(handle) => lent.push(Resource::new_borrow(handle.rep())),
                Err(refusal) => {
                    drop(self.take_back(lent));
                    return Err(refusal);
                }
            }
        }
        Ok(())
    }

    /// Takes back what was lent.
    pub(crate) fn take_back(&mut self, lent: &mut Vec<Resource<Tensor>>) -> wasmtime::Result<()> {
        lent.drain(..).try_for_each(|borrow| {
            let handle = Resource::new_own(borrow.rep());
            self.release(handle).map(drop)
        })
    }

    /// Takes a tensor back.
    pub(crate) fn release(&mut self, handle: Resource<Tensor>) -> wasmtime::Result<Tensor> {
        let tensor = self.tensors.remove(handle)?;
        self.tensor_bytes = self.tensor_bytes.saturating_sub(tensor.byte_len());
        Ok(tensor)
    }

    /// Gives the plugin a builder.
    pub(crate) fn hold_builder(
        &mut self,
        builder: Recorder,
    ) -> Result<Resource<Recorder>, Refusal> {
        self.room_for_graph()?;
        Ok(self.builders.insert(builder))
    }

    /// Gives the plugin a graph.
    pub(crate) fn hold_graph(
        &mut self,
        graph: GraphHandle,
    ) -> Result<Resource<GraphHandle>, Refusal> {
        self.room_for_graph()?;
        Ok(self.graphs.insert(graph))
    }

    fn room_for_graph(&self) -> Result<(), Refusal> {
        let limit = self.shared.limits.max_graphs;
        if self.builders.count() + self.graphs.count() >= limit {
            return Err(LimitHit::count("max_graphs", limit).into());
        }
        self.room_for_handle()
    }

    fn room_for_handle(&self) -> Result<(), Refusal> {
        let limit = self.shared.limits.max_handles;
        let held = self.tensors.count() + self.builders.count() + self.graphs.count();
        if held >= limit {
            return Err(LimitHit::count("max_handles", limit).into());
        }
        Ok(())
    }
}

impl ResourceLimiter for State {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let limit = self.shared.limits.memory_bytes;
        let total = self.memory_bytes.saturating_add(desired.saturating_sub(current));
        if total > limit {
            self.note(&LimitHit::count("memory_bytes", limit).into());
            return Ok(false);
        }
        self.memory_bytes = total;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let limit = self.shared.limits.table_elements;
        let total = self.table_elements.saturating_add(desired.saturating_sub(current));
        if total > limit {
            self.note(&LimitHit::count("table_elements", limit).into());
            return Ok(false);
        }
        self.table_elements = total;
        Ok(true)
    }
}
