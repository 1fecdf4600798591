//! What callers of the host see of plugins that misbehave.

mod common;
#[path = "plugins/compat.rs"]
mod compat;

use common::{compiled, config, evil, guests, host, limits, load, tensor, within};
use mortise_host::{CompileLimits, Host, HostConfig, Plugin, PluginHealth, PluginLimits, World};
use mortise_types::{Bytes, CutShort, ErrorKind, Result, RunControl, Tensor};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: ErrorKind = ErrorKind::LimitExceeded;
const FAILED: ErrorKind = ErrorKind::PluginFailed;
const LONG: Duration = Duration::from_secs(60);

/// Kind and message; `None` for an answer.
fn outcome<T>(result: Result<T>) -> Option<(ErrorKind, String)> {
    result.err().map(|error| (error.kind(), error.message().to_owned()))
}

fn assert_refused<T>(case: &str, result: Result<T>, kind: ErrorKind, fragment: &str) {
    let (got, message) = outcome(result).unwrap_or_else(|| panic!("{case}: accepted"));
    assert_eq!(got, kind, "{case}: {message}");
    assert!(message.contains(fragment), "{case}: \"{message}\" lacks \"{fragment}\"");
}

fn values(outputs: &[Tensor]) -> &[f32] {
    outputs[0].as_slice().unwrap()
}

/// A well-meant call: it waits for a replacement instance if need be.
fn assert_answers(case: &str, plugin: &Plugin) {
    let outputs = plugin.call(tensor(&[1.0, 2.0]), &within(LONG));
    let outputs = outputs.unwrap_or_else(|error| panic!("{case}: {error}"));
    assert_eq!(values(&outputs), [1.0, 2.0], "{case}");
}

#[test]
fn a_call_that_misbehaves_fails_alone_and_says_why() {
    let name = "plugin \"evil\" of endpoint \"e\"";
    let cases = [
        ("loop", LIMIT, "call_timeout = 300 ms was hit"),
        ("trap", FAILED, "trapped in predict (model world): it aborted"),
        ("stack-overflow", FAILED, "stack overflow"),
        ("memory-bomb", LIMIT, "memory_bytes = 33554432 was hit"),
        ("handle-bomb", LIMIT, "max_handles = 1000 was hit"),
        ("tensor-bomb", LIMIT, "max_tensor_bytes = 16777216 was hit"),
        ("call-bomb", LIMIT, "max_host_calls_per_call = 200000 was hit"),
        ("wrong-shape", FAILED, "\"y\" expects shape [-1], got [1, 1]"),
        ("wrong-dtype", FAILED, "\"y\" expects FP32, got INT64"),
        ("wrong-count", FAILED, "0 tensor(s) instead of 1"),
        ("lying-length", FAILED, "shape [2] takes 2 elements, got 1"),
        ("huge-shape", FAILED, "[2147483648, 2147483648, 4] has too many elements"),
        ("lying-offsets", FAILED, "shape [3] takes 3 elements, got 1"),
        ("panic", FAILED, "it logged: panicked at evil/src/lib.rs"),
        ("error-invalid", ErrorKind::InvalidInput, "x must be tame"),
        ("error-unsupported", ErrorKind::Unsupported, "wild x"),
        ("error-failed", FAILED, "out of luck"),
        ("run-loop", LIMIT, "graph_timeout = 500 ms was hit"),
    ];
    for (behave, kind, fragment) in cases {
        let plugin = evil(behave, limits()).unwrap_or_else(|error| panic!("{behave}: {error}"));
        for _ in 0..2 {
            let result = plugin.call(tensor(&[-1.0]), &within(LONG));
            assert_refused(behave, result, kind, fragment);
        }
        assert_refused(behave, plugin.call(tensor(&[-1.0]), &within(LONG)), kind, name);
        assert_answers(behave, &plugin);
        assert_eq!(plugin.health(), PluginHealth::Ready, "{behave}");
    }
}

/// What became of a brief call, and how long it held this thread.
fn brief_call(plugin: &Plugin, value: f32) -> (Option<CutShort>, Result<Vec<Tensor>>, Duration) {
    let control = within(LONG).brief();
    let start = Instant::now();
    let result = plugin.call(tensor(&[value]), &control);
    (control.was_cut_short(), result, start.elapsed())
}

#[test]
fn a_brief_call_ends_after_a_moment_and_says_nothing_of_the_plugin() {
    let long = PluginLimits { call_timeout: LONG, graph_timeout: LONG, ..limits() };
    for behave in ["loop", "run-loop"] {
        let plugin = evil(behave, long.clone()).unwrap();
        let (cut, result, took) = brief_call(&plugin, -1.0);
        assert_eq!(cut, Some(CutShort::TooLong), "{behave}: {result:?}");
        // Some milliseconds of processor time; the rest is for a busy machine.
        assert!(took < LONG / 4, "{behave}: {took:?}");
        assert_answers(behave, &plugin);
        let (cut, result, _) = brief_call(&plugin, 5.0);
        let answered = cut.is_none() && values(&result.unwrap()) == [5.0];
        assert!(answered || cut == Some(CutShort::Busy), "{behave}: {cut:?}");
        let stats = plugin.stats();
        assert_eq!((stats.cut_short, stats.timeouts, stats.traps), (1, 0, 0), "{behave}");
        assert_eq!(stats.limits_hit.len(), 0, "{behave}: {:?}", stats.limits_hit);
    }
}

#[test]
fn a_brief_call_waits_for_no_instance() {
    let one = PluginLimits { instances: 1, call_timeout: LONG, ..limits() };
    let plugin = evil("loop", one).unwrap();
    std::thread::scope(|scope| {
        let held = scope.spawn(|| plugin.call(tensor(&[-1.0]), &within(Duration::from_secs(2))));
        let start = Instant::now();
        // Until the other call has the instance, this one gets it.
        while brief_call(&plugin, 1.0).0 != Some(CutShort::Busy) {
            assert!(start.elapsed() < LONG, "the instance stayed free");
        }
        assert!(!held.is_finished(), "it waited for the other call");
        assert_refused("loop", held.join().unwrap(), ErrorKind::Deadline, "deadline");
    });
    assert_eq!(plugin.stats().refused, 0);
}

#[test]
fn panics_carry_their_message() {
    let plugin = evil("panic", limits()).unwrap();
    let result = plugin.call(tensor(&[-1.0]), &within(LONG));
    assert_refused("panic", result, FAILED, "boom in predict");
}

#[test]
fn a_load_that_misbehaves_says_why() {
    let cases = [
        ("panic-in-load", FAILED, "boom in load"),
        ("loop-in-load", LIMIT, "load_timeout = 1000 ms was hit"),
        ("memory-bomb-in-load", LIMIT, "memory_bytes = 33554432 was hit"),
        ("error-in-load", ErrorKind::InvalidInput, "this model is not to be loaded"),
        ("bad-signature", FAILED, "bad signature: two outputs are named \"y\""),
        ("missing-asset", ErrorKind::InvalidInput, "no asset \"model\"; this version has []"),
        ("node-bomb", LIMIT, "max_graph_nodes = 10000 was hit"),
        ("nesting-bomb", LIMIT, "max_graph_nesting = 16 was hit"),
        ("builder-bomb", LIMIT, "max_graphs = 16 was hit"),
        ("no-such-behaviour", ErrorKind::InvalidInput, "unknown variant `no-such-behaviour`"),
    ];
    for (behave, kind, fragment) in cases {
        assert_refused(behave, evil(behave, limits()), kind, fragment);
    }
    assert_answers("misuse-builder", &evil("misuse-builder", limits()).unwrap());
}

#[test]
fn broken_binary_interfaces_are_traps() {
    for lie in ["list", "handle", "stolen", "case", "utf8", "pointer", "keep"] {
        let plugin = load("abi", lie, limits()).unwrap();
        for _ in 0..3 {
            let result = plugin.call(tensor(&[1.0]), &within(LONG));
            assert_refused(lie, result, FAILED, "broke the rules of the component model");
        }
    }
}

#[test]
fn traps_are_told_in_names_after_the_call() {
    let plugin = evil("panic", limits()).unwrap();
    let result = plugin.call(tensor(&[-1.0]), &within(LONG));
    assert_refused("panic", result, FAILED, "boom in predict");
    let start = Instant::now();
    let trace = loop {
        if let Some(trace) = plugin.stats().last_trap {
            break trace;
        }
        assert!(start.elapsed() < LONG, "no trace");
        std::thread::yield_now();
    };
    assert!(trace.contains("panic") && trace.contains("predict"), "{trace}");
}

#[test]
fn wasi_is_there_with_nothing_behind_it() {
    let component = Bytes::from(guests::wasi_model());
    let compiled = host().compile(&host().verify(component).unwrap()).unwrap();
    let plugin = common::load_on(host(), &compiled, "{}", limits()).unwrap();
    assert_eq!(values(&plugin.call(tensor(&[1.0]), &within(LONG)).unwrap()), [42.0]);
    for fragment in [
        "it called wasi:clocks/monotonic-clock@0.2.3 now, and a plugin has no files, network, clock",
        "it logged: last words",
    ] {
        let result = plugin.call(tensor(&[1.0, 2.0]), &within(LONG));
        assert_refused("clock", result, FAILED, fragment);
    }
}

#[test]
fn logs_are_cut_dropped_and_counted() {
    let plugin = evil("log-flood", PluginLimits { log_lines_per_second: 10, ..limits() }).unwrap();
    assert_eq!(values(&plugin.call(tensor(&[-1.0]), &within(LONG)).unwrap()), [-1.0]);
    assert!(plugin.stats().log_lines_dropped > 90_000);
    let plugin = evil("log-line", limits()).unwrap();
    assert!(plugin.call(tensor(&[-1.0]), &within(LONG)).is_ok());
}

#[test]
fn the_requests_deadline_stops_a_loop_and_is_not_held_against_the_plugin() {
    let strict = PluginLimits { quarantine_after: 1, call_timeout: LONG, ..limits() };
    let plugin = evil("loop", strict).unwrap();
    let result = plugin.call(tensor(&[-1.0]), &within(Duration::from_millis(50)));
    assert_refused("loop", result, ErrorKind::Deadline, "the request's deadline passed");
    assert_eq!(plugin.health(), PluginHealth::Ready);
    assert_answers("loop", &plugin);
}

#[test]
fn a_deadline_stops_a_graph_that_a_plugin_runs() {
    let plugin = evil("run-loop", PluginLimits { graph_timeout: LONG, ..limits() }).unwrap();
    let result = plugin.call(tensor(&[-1.0]), &within(Duration::from_millis(50)));
    assert_refused("run-loop", result, ErrorKind::Deadline, "deadline passed");
    assert_answers("run-loop", &plugin);
}

#[test]
fn repeated_traps_lead_to_quarantine_and_back() {
    let backoff = Duration::from_millis(200);
    let strict = PluginLimits { quarantine_after: 3, quarantine_backoff: backoff, ..limits() };
    let plugin = evil("trap", strict).unwrap();
    for _ in 0..3 {
        assert_refused("trap", plugin.call(tensor(&[-1.0]), &within(LONG)), FAILED, "trapped");
    }
    let PluginHealth::Quarantined { reason, retry_in } = plugin.health() else {
        panic!("not in quarantine");
    };
    assert!(reason.contains("trapped in predict") && retry_in <= backoff, "{reason} {retry_in:?}");
    let refused = plugin.call(tensor(&[1.0]), &within(LONG));
    assert_refused("trap", refused, ErrorKind::NotReady, "is in quarantine for another");

    wait_until_ready(&plugin);
    assert_refused("probe", plugin.call(tensor(&[-1.0]), &within(LONG)), FAILED, "trapped");
    let PluginHealth::Quarantined { retry_in, .. } = plugin.health() else {
        panic!("the probe failed and was forgiven");
    };
    assert!(retry_in > backoff, "{retry_in:?}");

    wait_until_ready(&plugin);
    assert_answers("after quarantine", &plugin);
    assert_eq!(plugin.health(), PluginHealth::Ready);
    let stats = plugin.stats();
    assert_eq!((stats.traps, stats.quarantines, stats.refused), (4, 2, 1));
}

/// The quarantine's end is an event on another thread that nothing reports;
/// it is a fraction of a second away.
fn wait_until_ready(plugin: &Plugin) {
    let start = Instant::now();
    while plugin.health() != PluginHealth::Ready {
        assert!(start.elapsed() < LONG, "still in quarantine");
        std::thread::yield_now();
    }
}

#[test]
fn calls_wait_for_an_instance_only_so_long() {
    let one = PluginLimits { instances: 1, call_timeout: LONG, max_waiting_calls: 1, ..limits() };
    let plugin = evil("loop", one).unwrap();
    let call = |value: f32, seconds| {
        outcome(plugin.call(tensor(&[value]), &within(Duration::from_secs(seconds)))).unwrap()
    };
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| call(-1.0, 5));
        while plugin.stats().calls == 0 {
            std::thread::yield_now();
        }
        let others: Vec<_> = (0..4).map(|_| scope.spawn(|| call(1.0, 2))).collect();
        let refusals: Vec<_> = others.into_iter().map(|call| call.join().unwrap()).collect();
        for (kind, message) in &refusals {
            assert_eq!(*kind, ErrorKind::Overloaded);
            assert!(message.contains("all 1 instances of plugin \"evil\""), "{message}");
        }
        let has = |text: &str| refusals.iter().any(|(_, message)| message.contains(text));
        assert!(has("max_waiting_calls = 1 wait already") && has("none came free in"));
        assert_eq!(busy.join().unwrap().0, ErrorKind::Deadline);
    });
}

#[test]
fn neighbours_answer_and_unloading_completes_while_a_guest_is_hammered() {
    let bad = evil("loop", PluginLimits { quarantine_after: 3, ..limits() }).unwrap();
    let good = evil("echo", limits()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let bad = bad.clone();
            scope.spawn(move || {
                for _ in 0..5 {
                    let _ = bad.call(tensor(&[-1.0]), &within(Duration::from_millis(500)));
                }
            });
        }
        let start = Instant::now();
        drop(bad);
        for _ in 0..200 {
            assert_answers("neighbour", &good);
        }
        assert!(start.elapsed() < LONG);
    });
}

#[test]
fn transforms_apply_and_instances_are_reused() {
    assert_eq!(compiled("apply").world(), World::Transform);
    let plugin = load("apply", "{}", limits()).unwrap();
    for _ in 0..100 {
        let outputs = plugin.call(tensor(&[1.0, 2.0]), &RunControl::unbounded()).unwrap();
        assert_eq!(values(&outputs), [2.0, 3.0]);
    }
    let stats = plugin.stats();
    assert_eq!((stats.calls, stats.instances, stats.instances_made), (100, 2, 2));
}

#[test]
fn instances_beyond_the_pool_still_work() {
    let dir = tempfile::tempdir().unwrap();
    let small = Host::new(HostConfig { max_instances: 1, ..config(dir.path()) }).unwrap();
    let verified = small.verify(Bytes::from(guests::component("apply"))).unwrap();
    let compiled = small.compile(&verified).unwrap();
    let plugins: Vec<Arc<Plugin>> =
        (0..3).map(|_| common::load_on(&small, &compiled, "{}", limits()).unwrap()).collect();
    for plugin in plugins {
        assert_eq!(values(&plugin.call(tensor(&[1.0]), &within(LONG)).unwrap()), [2.0]);
    }
}

#[test]
fn components_that_are_no_plugins_are_refused_before_compiling() {
    let good = guests::component("evil");
    let undeclared = host().verify(Bytes::from(guests::component("undeclared")));
    let import = "imports \"evil:guest/shell\", which no world declares";
    assert_refused("undeclared", undeclared, ErrorKind::InvalidInput, import);
    for end in [0, 1, 7, 8, 100, good.len() / 2, good.len() - 1] {
        let cut = Bytes::copy_from_slice(&good[..end]);
        assert_refused("cut", host().verify(cut), ErrorKind::InvalidInput, "component");
    }
    // A flip may hit a name or a constant and be harmless; it must not panic,
    // and what is accepted must load or fail cleanly.
    for seed in 0..300usize {
        let mut flipped = good.clone();
        let index = seed.wrapping_mul(7919) % flipped.len();
        flipped[index] ^= 1 << (seed % 8);
        let _ = host().verify(Bytes::from(flipped));
    }
}

#[test]
fn the_cache_is_used_and_forgeries_are_compiled_again() {
    let dir = tempfile::tempdir().unwrap();
    let component = Bytes::from(guests::component("apply"));
    let compile = || {
        let host = Host::new(config(dir.path())).unwrap();
        let compiled = host.compile(&host.verify(component.clone()).unwrap()).unwrap();
        let plugin = common::load_on(&host, &compiled, "{}", limits()).unwrap();
        assert_eq!(values(&plugin.call(tensor(&[1.0]), &within(LONG)).unwrap()), [2.0]);
        compiled.from_cache()
    };
    assert!(!compile());
    assert!(compile());
    let artifacts = || {
        let entries = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "cwasm"))
    };
    for path in artifacts() {
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(!compile(), "a forged artifact was loaded");
    assert!(compile());
    assert_eq!(artifacts().count(), 1);
}

#[test]
fn compiling_is_limited_in_time_and_memory() {
    let bomb = Bytes::from(guests::compile_bomb(30));
    let cases = [
        (
            CompileLimits { timeout: Duration::from_millis(300), ..Default::default() },
            "timeout = 300 ms",
        ),
        (CompileLimits { memory_bytes: 64 << 20, timeout: LONG }, "memory_bytes = 67108864"),
    ];
    for (compile, fragment) in cases {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(HostConfig { compile, ..config(dir.path()) }).unwrap();
        let verified = host.verify(bomb.clone()).unwrap();
        let start = Instant::now();
        assert_refused(fragment, host.compile(&verified), LIMIT, fragment);
        assert!(start.elapsed() < LONG);
    }
}

#[test]
fn equal_plugins_share_their_code_and_a_missing_compiler_is_named() {
    let verified = host().verify(Bytes::from(guests::component("evil"))).unwrap();
    let first = host().compile(&verified).unwrap();
    assert!(host().compile(&verified).unwrap().from_cache());
    assert_eq!(first.digest(), verified.digest());

    let dir = tempfile::tempdir().unwrap();
    let mut broken = config(dir.path());
    broken.worker.program = "/no/such/compiler".into();
    let host = Host::new(broken).unwrap();
    let result = host.compile(&host.verify(verified.component().clone()).unwrap());
    assert_refused("compiler", result, ErrorKind::Internal, "/no/such/compiler");
}
