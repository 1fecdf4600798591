use crate::World;
use crate::limits::{LimitHit, Refusal};
use crate::state::State;
use crate::wasi::Denied;
use mortise_types::{Error, ErrorKind};
use std::fmt;
use wasmtime::{Trap, WasmBacktrace};

/// The innermost functions that are named.
const TRACE_FRAMES: usize = 16;

/// Why an entry into a plugin gave no answer, and what that says about the
/// instance.
pub(crate) struct Failure {
    pub error: Error,
    /// The instance must not be entered again.
    pub retire: bool,
    /// What counts towards quarantine.
    pub fault: Option<Fault>,
    /// Functions of the plugin that were running, the innermost first, as the
    /// component names them.
    pub trace: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Trap,
    Timeout,
    Limit,
}

/// Where the plugin was entered, for messages.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    world: World,
    function: &'static str,
}

impl Entry {
    pub(crate) fn new(world: World, function: &'static str) -> Self {
        Self { world, function }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} world)", self.function, self.world)
    }
}

impl Failure {
    /// The host's own failure: says nothing about the plugin.
    pub(crate) fn of_host(error: Error) -> Self {
        Self { error, retire: false, fault: None, trace: Vec::new() }
    }

    /// The plugin returned an error. When it ran into a limit before, that is
    /// the kind of the error, and the instance has used up what it may hold.
    pub(crate) fn returned(state: &mut State, error: Error) -> Self {
        let name = state.shared.name();
        let Some(cause) = state.cause.take() else {
            return Self {
                error: error.context(name),
                retire: false,
                fault: None,
                trace: Vec::new(),
            };
        };
        let told = error.message().contains(cause.message());
        let error = match told {
            true => error,
            false => error.context(cause.message()),
        };
        let fault = fault_of(&cause);
        let error = error.context(name).with_kind(cause.kind());
        Self { error, retire: fault == Some(Fault::Limit), fault, trace: Vec::new() }
    }
}

fn fault_of(cause: &Error) -> Option<Fault> {
    match cause.kind() {
        ErrorKind::LimitExceeded if cause.message().contains("_timeout") => Some(Fault::Timeout),
        ErrorKind::LimitExceeded => Some(Fault::Limit),
        // The request's own deadline says nothing about the plugin.
        _ => None,
    }
}

/// Turns what wasmtime reports after a trap into the caller's error.
pub(crate) fn explain(state: &mut State, entry: Entry, trap: wasmtime::Error) -> Failure {
    if state.cause.is_none() && is_hostcall_fuel(&trap) {
        let limit = state.shared.limits.max_list_bytes;
        state.note(&Refusal::Limit(LimitHit::count("max_list_bytes", limit)));
    }
    let name = state.shared.name();
    let line = state.last_error_line.take();
    let (error, fault) = match state.cause.take() {
        Some(cause) => {
            let fault = fault_of(&cause);
            (cause.context(format!("in {entry}")).context(name), fault)
        }
        None => {
            let cause = cause_of(&trap);
            (Error::plugin(format!("{name} trapped in {entry}: {cause}")), Some(Fault::Trap))
        }
    };
    let trace = trace_of(&trap);
    Failure { error: with_line(error, line), retire: true, fault, trace }
}

/// Names only: demangling is for a thread that serves nobody.
fn trace_of(trap: &wasmtime::Error) -> Vec<String> {
    let Some(trace) = trap.downcast_ref::<WasmBacktrace>() else { return Vec::new() };
    let frames = trace.frames().iter().take(TRACE_FRAMES);
    frames.map(|frame| frame.func_name().unwrap_or("?").to_owned()).collect()
}

/// `f <- g <- h`: the functions that were running when a plugin trapped.
pub(crate) fn readable(trace: &[String]) -> String {
    let names = trace.iter().map(|name| format!("{:#}", rustc_demangle::demangle(name)));
    names.collect::<Vec<_>>().join(" <- ")
}

/// Appends the plugin's own last words: normally a panic message.
fn with_line(error: Error, line: Option<String>) -> Error {
    match line {
        Some(line) => Error::new(error.kind(), format!("{}; it logged: {line}", error.message())),
        None => error,
    }
}

fn cause_of(error: &wasmtime::Error) -> String {
    if let Some(denied) = error.downcast_ref::<Denied>() {
        return denied.to_string();
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::StackOverflow) => "stack overflow".into(),
        Some(Trap::UnreachableCodeReached) => {
            "it aborted (an unreachable instruction: a panic or an explicit abort)".into()
        }
        Some(Trap::MemoryOutOfBounds) => {
            "memory access out of bounds, as with a bad pointer or a stack overflow".into()
        }
        Some(trap) => trap.to_string(),
        None => format!("it broke the rules of the component model: {}", error.root_cause()),
    }
}

/// wasmtime gives this error no type.
fn is_hostcall_fuel(error: &wasmtime::Error) -> bool {
    format!("{error:#}").contains("fuel allocated for hostcalls")
}
