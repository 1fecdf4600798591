use crate::bindings::types;
use crate::budget::{Budget, LOAD_TIMEOUT};
use crate::limits::{LimitHit, Refusal};
use crate::log::LogGate;
use crate::{GraphRunner, PluginLimits, PreparedGraph};
use mortise_types::{Assets, Error, ErrorKind, RunControl, Tensor};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wasmtime::ResourceLimiter;
use wasmtime::component::{Resource, ResourceTable, ResourceTableError};

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
    pub table: ResourceTable,
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
    graph_count: usize,
    memory_bytes: usize,
    table_elements: usize,
}

impl State {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(shared.limits.max_handles);
        let budget =
            Budget::new(LOAD_TIMEOUT, Duration::ZERO, Duration::ZERO, None, Instant::now());
        Self {
            shared,
            table,
            budget,
            control: RunControl::unbounded(),
            calls_left: 0,
            cause: None,
            last_error_line: None,
            tensor_bytes: 0,
            graph_count: 0,
            memory_bytes: 0,
            table_elements: 0,
        }
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
        let handle = self.push(tensor)?;
        self.tensor_bytes = total;
        Ok(handle)
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

    /// Takes a tensor back.
    pub(crate) fn release(&mut self, handle: Resource<Tensor>) -> wasmtime::Result<Tensor> {
        let tensor = self.table.delete(handle)?;
        self.tensor_bytes = self.tensor_bytes.saturating_sub(tensor.byte_len());
        Ok(tensor)
    }

    /// Gives the plugin a builder or a graph.
    pub(crate) fn push_graph<T: Send + 'static>(
        &mut self,
        entry: T,
    ) -> Result<Resource<T>, Refusal> {
        let limit = self.shared.limits.max_graphs;
        if self.graph_count >= limit {
            return Err(LimitHit::count("max_graphs", limit).into());
        }
        let handle = self.push(entry)?;
        self.graph_count += 1;
        Ok(handle)
    }

    /// Takes a builder or a graph back.
    pub(crate) fn delete_graph<T: Send + 'static>(
        &mut self,
        handle: Resource<T>,
    ) -> wasmtime::Result<T> {
        let entry = self.table.delete(handle)?;
        self.graph_count -= 1;
        Ok(entry)
    }

    fn push<T: Send + 'static>(&mut self, entry: T) -> Result<Resource<T>, Refusal> {
        let limit = self.shared.limits.max_handles;
        self.table.push(entry).map_err(|error| match error {
            ResourceTableError::Full => LimitHit::count("max_handles", limit).into(),
            other => Refusal::Other(Error::internal(other.to_string())),
        })
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
