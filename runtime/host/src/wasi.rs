//! WASI for components of toolchains that cannot do without it: every function
//! exists, and there is nothing behind it. No files, network, arguments or
//! environment; what is written to the standard streams goes to the log; clocks
//! and randomness, for which there is no empty answer, trap and say so.

use crate::bindings::log::Level;
use crate::state::State;
use std::fmt;
use wasmtime::component::types::{ComponentInstance, ComponentItem};
use wasmtime::component::{Component, Linker, Resource, ResourceAny, ResourceType, Val};
use wasmtime::{Engine, StoreContextMut};

/// How the names of all these interfaces begin. Later, incompatible versions
/// begin otherwise.
const PREFIX: &str = "wasi:";
const VERSION: &str = "@0.2.";

/// Bytes that may be written to a standard stream at once, as the interface
/// lets its implementation say.
const WRITE_BYTES: u64 = 4096;

/// Whether an import is one that [`link`] defines.
pub(crate) fn is_served(import: &str) -> bool {
    import.starts_with(PREFIX) && import.contains(VERSION)
}

/// A function that is not granted was called.
#[derive(Debug)]
pub(crate) struct Denied(String);

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(name) = self;
        write!(f, "it called {name}, and a plugin has no files, network, clock or randomness")
    }
}

impl std::error::Error for Denied {}

/// Any resource of these interfaces; its number says which standard stream it
/// is, if it is one.
struct Handle;

const STDIN: u32 = 0;
const STDOUT: u32 = 1;
const STDERR: u32 = 2;
/// Of something that can be waited for, and is always ready.
const POLLABLE: u32 = 3;

/// The linker with what the component imports of WASI; `None` when it imports
/// nothing of it.
pub(crate) fn link(
    engine: &Engine,
    linker: &Linker<State>,
    component: &Component,
) -> wasmtime::Result<Option<Linker<State>>> {
    let mut extended = None;
    for (name, import) in component.component_type().imports(engine) {
        if let ComponentItem::ComponentInstance(instance) = import.ty
            && is_served(name)
        {
            let linker = extended.get_or_insert_with(|| linker.clone());
            define(engine, linker, name, &instance)?;
        }
    }
    Ok(extended)
}

fn define(
    engine: &Engine,
    linker: &mut Linker<State>,
    interface: &str,
    instance: &ComponentInstance,
) -> wasmtime::Result<()> {
    let mut target = linker.instance(interface)?;
    for (name, item) in instance.exports(engine) {
        match item.ty {
            ComponentItem::Resource(_) => {
                target.resource(name, ResourceType::host::<Handle>(), |_, _| Ok(()))?;
            }
            ComponentItem::ComponentFunc(_) => {
                let action = Action::of(interface, name);
                target.func_new(name, move |store, _, arguments, results| {
                    act(store, &action, arguments, results)
                })?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// What a function does.
#[derive(Clone, Debug, PartialEq)]
enum Action {
    EmptyList,
    Nothing,
    Handle(u32),
    /// Fixed, so that the seeds of hash tables, which ask here, do not differ
    /// between instances.
    ZeroSeed,
    ReadyToWrite,
    Write,
    Flush,
    EndOfInput,
    IsReady,
    Wait,
    Deny(String),
}

impl Action {
    fn of(interface: &str, name: &str) -> Self {
        let (short, _) = interface.split_once('@').unwrap_or((interface, ""));
        match (short, name) {
            ("wasi:cli/environment", "get-environment" | "get-arguments")
            | ("wasi:filesystem/preopens", "get-directories") => Self::EmptyList,
            ("wasi:cli/environment", "initial-cwd")
            | (
                "wasi:cli/terminal-stdin" | "wasi:cli/terminal-stdout" | "wasi:cli/terminal-stderr",
                _,
            ) => Self::Nothing,
            ("wasi:cli/stdin", "get-stdin") => Self::Handle(STDIN),
            ("wasi:cli/stdout", "get-stdout") => Self::Handle(STDOUT),
            ("wasi:cli/stderr", "get-stderr") => Self::Handle(STDERR),
            ("wasi:random/insecure-seed", _) => Self::ZeroSeed,
            ("wasi:io/streams", name) => {
                Self::of_stream(name).unwrap_or_else(|| Self::Deny(format!("{interface} {name}")))
            }
            ("wasi:io/poll", "[method]pollable.ready") => Self::IsReady,
            ("wasi:io/poll", "[method]pollable.block") => Self::Wait,
            _ => Self::Deny(format!("{interface} {name}")),
        }
    }

    fn of_stream(name: &str) -> Option<Self> {
        Some(match name.strip_prefix("[method]")? {
            "output-stream.check-write" => Self::ReadyToWrite,
            "output-stream.write" | "output-stream.blocking-write-and-flush" => Self::Write,
            "output-stream.flush" | "output-stream.blocking-flush" => Self::Flush,
            "output-stream.subscribe" | "input-stream.subscribe" => Self::Handle(POLLABLE),
            "input-stream.read" | "input-stream.blocking-read" => Self::EndOfInput,
            _ => return None,
        })
    }
}

fn act(
    mut store: StoreContextMut<'_, State>,
    action: &Action,
    arguments: &[Val],
    results: &mut [Val],
) -> wasmtime::Result<()> {
    store.data_mut().enter_host()?;
    let value = match action {
        Action::EmptyList => Val::List(Vec::new()),
        Action::Nothing => Val::Option(None),
        Action::Handle(number) => {
            let handle = Resource::<Handle>::new_own(*number);
            Val::Resource(ResourceAny::try_from_resource(handle, &mut store)?)
        }
        Action::ZeroSeed => Val::Tuple(vec![Val::U64(0), Val::U64(0)]),
        Action::ReadyToWrite => Val::Result(Ok(Some(Box::new(Val::U64(WRITE_BYTES))))),
        Action::Write => {
            write(store, arguments)?;
            Val::Result(Ok(None))
        }
        Action::Flush => Val::Result(Ok(None)),
        Action::EndOfInput => {
            let closed = Val::Variant("closed".into(), None);
            Val::Result(Err(Some(Box::new(closed))))
        }
        Action::IsReady => Val::Bool(true),
        Action::Wait => return Ok(()),
        Action::Deny(name) => return Err(wasmtime::Error::new(Denied(name.clone()))),
    };
    if let Some(result) = results.first_mut() {
        *result = value;
    }
    Ok(())
}

fn write(mut store: StoreContextMut<'_, State>, arguments: &[Val]) -> wasmtime::Result<()> {
    let [Val::Resource(stream), Val::List(bytes)] = arguments else {
        return Err(wasmtime::Error::msg("a write takes a stream and bytes"));
    };
    let handle = Resource::<Handle>::try_from_resource_any(*stream, &mut store)?;
    let bytes = bytes.iter().filter_map(|byte| match byte {
        Val::U8(byte) => Some(*byte),
        _ => None,
    });
    let text = String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned();
    let level = if handle.rep() == STDERR { Level::Error } else { Level::Info };
    store.data_mut().log_text(level, &text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_empty_answer_is_denied_by_name() {
        let cases = [
            ("wasi:cli/environment@0.2.3", "get-environment", Action::EmptyList),
            ("wasi:cli/stderr@0.2.0", "get-stderr", Action::Handle(STDERR)),
            ("wasi:io/streams@0.2.9", "[method]output-stream.blocking-flush", Action::Flush),
        ];
        for (interface, name, want) in cases {
            assert_eq!(Action::of(interface, name), want, "{interface} {name}");
        }
        for (interface, name) in [
            ("wasi:clocks/monotonic-clock@0.2.3", "now"),
            ("wasi:random/random@0.2.3", "get-random-bytes"),
            ("wasi:io/streams@0.2.3", "[method]input-stream.skip"),
            ("wasi:sockets/tcp-create-socket@0.2.3", "create-tcp-socket"),
        ] {
            assert_eq!(Action::of(interface, name), Action::Deny(format!("{interface} {name}")));
        }
        assert!(is_served("wasi:cli/exit@0.2.3"));
        assert!(!is_served("wasi:cli/exit@0.3.0") && !is_served("evil:cli/exit@0.2.0"));
    }
}
