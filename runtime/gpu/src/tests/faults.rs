//! Loss of the device and memory that runs out.

use super::check::{Graph, Random};
use crate::GpuDevice;
use mortise_compute::{Device, DeviceCounters, Executable, compile_graph};
use mortise_graph::GraphLimits;
use mortise_types::{Assets, Attribute, DType, ErrorKind, RunControl, Tensor};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub(super) fn mlp(random: &mut Random, hidden: usize) -> Graph {
    let mut graph = Graph::default();
    let x = graph.input(DType::F32, &[-1, 16]);
    let w1 = graph.constant(random.floats(&[16, hidden]));
    let b1 = graph.constant(random.floats(&[hidden]));
    let w2 = graph.constant(random.floats(&[hidden, 4]));
    let product = graph.node("MatMul", &[x, w1], &[]);
    let sum = graph.node("Add", &[product, b1], &[]);
    let hidden = graph.node("Tanh", &[sum], &[]);
    let scores = graph.node("MatMul", &[hidden, w2], &[]);
    let y = graph.node("Softmax", &[scores], &[("axis", Attribute::Int(-1))]);
    graph.output(y);
    graph
}

pub(super) fn compile(device: &dyn Device, graph: &Graph) -> Arc<dyn Executable> {
    compile_graph(device, &graph.def, &Assets::default(), &GraphLimits::default()).unwrap()
}

pub(super) fn run(
    executable: &dyn Executable,
    input: &Tensor,
) -> mortise_types::Result<Vec<Tensor>> {
    executable.execute(vec![input.clone()], &RunControl::unbounded())?.wait()
}

#[test]
fn a_lost_device_is_opened_again() {
    let device = super::open();
    let mut random = Random::new();
    let graph = mlp(&mut random, 32);
    let executable = compile(&*device, &graph);
    let input = random.floats(&[3, 16]);
    let before = run(&*executable, &input).unwrap();
    assert_eq!(device.counters().losses, 0);
    device.lose();
    let after = run(&*executable, &input).unwrap();
    assert_eq!(before[0].bytes(), after[0].bytes());
    assert_eq!(device.counters().losses, 1);
    assert_eq!(device.counters().fallback_runs, 0, "the GPU itself answers again");
}

#[test]
fn a_run_on_a_lost_device_is_an_error_of_its_own() {
    let device = super::open();
    let mut random = Random::new();
    let graph = mlp(&mut random, 32);
    let executable = compile(&*device, &graph);
    let generation = device.generation();
    device.lose();
    let error = generation.context.check().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady);
    let error = generation.heap.upload(&generation.context, &[0; 64]).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotReady);
    assert!(run(&*executable, &random.floats(&[1, 16])).is_ok());
}

#[test]
fn what_does_not_fit_is_refused_and_harms_nobody() {
    let device = super::open();
    let mut random = Random::new();
    let graph = mlp(&mut random, 32);
    let executable = compile(&*device, &graph);
    let input = random.floats(&[2, 16]);
    let before = run(&*executable, &input).unwrap();
    let generation = device.generation();
    let most = generation.context.limits.max_buffer_size;
    let usage = wgpu::BufferUsages::STORAGE;
    let error = generation.context.buffer("test", most + 4, usage, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert_eq!(run(&*executable, &input).unwrap()[0].bytes(), before[0].bytes());
    let limits = GraphLimits { max_arena_bytes: 64, ..GraphLimits::default() };
    let small = compile_graph(&*device, &graph.def, &Assets::default(), &limits).unwrap();
    let error = run(&*small, &input).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded, "the CPU has the same limit");
}

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(3600);

/// Whether buffers find no memory from here on.
fn fill(device: &GpuDevice, is_full: bool) {
    device.generation().context.probe.is_full.store(is_full, Ordering::Relaxed);
}

#[test]
fn a_full_device_fails_one_request_and_the_cpu_answers_the_next() {
    let device = super::open_retrying(LONG);
    let mut random = Random::new();
    let executable = compile(&*device, &mlp(&mut random, 32));
    fill(&device, true);
    let input = random.floats(&[3, 16]);
    let error = run(&*executable, &input).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert!(error.to_string().contains("bytes left for arena"), "{error}");
    run(&*executable, &input).unwrap();
    let want = DeviceCounters { out_of_memory: 1, fallback_runs: 1, losses: 0 };
    assert_eq!(device.counters(), want);
}

#[test]
fn a_device_that_was_full_serves_again() {
    let device = super::open();
    let mut random = Random::new();
    let executable = compile(&*device, &mlp(&mut random, 32));
    let input = random.floats(&[3, 16]);
    fill(&device, true);
    assert!(run(&*executable, &input).is_err());
    assert!(run(&*executable, &input).is_err(), "it is tried at once, and is still full");
    fill(&device, false);
    run(&*executable, &input).unwrap();
    let want = DeviceCounters { out_of_memory: 2, fallback_runs: 0, losses: 0 };
    assert_eq!(device.counters(), want);
}

#[test]
fn weights_that_find_no_memory_fail_their_deployment_alone() {
    let device = super::open();
    let mut random = Random::new();
    let input = random.floats(&[3, 16]);
    let served = compile(&*device, &mlp(&mut random, 32));
    let before = run(&*served, &input).unwrap();
    fill(&device, true);
    let large = mlp(&mut random, 1 << 20).def;
    let error = compile_graph(&*device, &large, &Assets::default(), &GraphLimits::default());
    assert_eq!(error.err().map(|error| error.kind()), Some(ErrorKind::Overloaded));
    assert_eq!(device.counters().out_of_memory, 1);
    fill(&device, false);
    assert_eq!(run(&*served, &input).unwrap()[0].bytes(), before[0].bytes());
}

/// Requests under way when the device is lost get an error that says so or
/// their own answer; the device is opened once, and serves the rest.
#[test]
fn a_loss_under_load_fails_requests_and_no_more() {
    let device = super::open();
    let mut random = Random::new();
    let executable = compile(&*device, &mlp(&mut random, 32));
    let input = random.floats(&[5, 16]);
    let want = run(&*executable, &input).unwrap();
    let begun = std::sync::Barrier::new(5);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                begun.wait();
                for _ in 0..50 {
                    match run(&*executable, &input) {
                        Ok(got) => assert_eq!(got[0].bytes(), want[0].bytes()),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::NotReady, "{error}"),
                    }
                }
            });
        }
        begun.wait();
        device.lose();
    });
    assert_eq!(run(&*executable, &input).unwrap()[0].bytes(), want[0].bytes());
    assert_eq!(device.counters().losses, 1);
    assert_eq!(device.counters().fallback_runs, 0);
}

#[test]
fn the_cpu_answers_while_a_lost_device_cannot_be_opened() {
    let device = super::open_retrying(LONG);
    let mut random = Random::new();
    let graph = mlp(&mut random, 32);
    let executable = compile(&*device, &graph);
    let input = random.floats(&[5, 16]);
    let want = run(&*executable, &input).unwrap();
    device.close();
    for _ in 0..3 {
        let got = run(&*executable, &input).unwrap();
        super::check::close("fallback", &got[0], &want[0], 1e-4);
    }
    assert!(device.caps().name.contains("lost"));
    let deployed = compile(&*device, &graph);
    run(&*deployed, &input).unwrap();
    let want = DeviceCounters { out_of_memory: 0, fallback_runs: 4, losses: 1 };
    assert_eq!(device.counters(), want);
}

/// The owner of a plugin is told which limit it needs more of.
#[test]
fn a_graph_over_its_budget_is_not_deployed() {
    let device = super::open();
    let mut random = Random::new();
    let graph = mlp(&mut random, 4096).def;
    let deploy = |limits| compile_graph(&*device, &graph, &Assets::default(), &limits);
    let generous = GraphLimits { max_device_bytes: 1 << 20, ..GraphLimits::default() };
    drop(deploy(generous).unwrap());
    let tight = [
        (
            GraphLimits { max_device_bytes: 300_000, ..GraphLimits::default() },
            "max_graph_device_bytes = 300000",
        ),
        (GraphLimits { max_dispatches: 2, ..GraphLimits::default() }, "max_graph_dispatches = 2"),
    ];
    for (limits, name) in tight {
        let error = deploy(limits).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
        assert!(error.to_string().contains(name), "{error}");
    }
    assert_eq!(device.memory(), (0, 0, 0), "what was not deployed holds nothing");
}

/// Several threads over the same three slots give each its own answer.
#[test]
fn overlapping_runs_do_not_mix() {
    let device = super::device();
    let mut random = Random::new();
    let graph = mlp(&mut random, 48);
    let executable = compile(&*device, &graph);
    let inputs: Vec<Tensor> = (1..9).map(|rows| random.floats(&[rows * 7, 16])).collect();
    let alone: Vec<Vec<Tensor>> =
        inputs.iter().map(|input| run(&*executable, input).unwrap()).collect();
    std::thread::scope(|scope| {
        for (input, want) in inputs.iter().zip(&alone) {
            let executable = &executable;
            scope.spawn(move || {
                for _ in 0..20 {
                    let got = run(&**executable, input).unwrap();
                    assert_eq!(got[0].bytes(), want[0].bytes());
                }
            });
        }
    });
}

/// A graph whose middle the device lacks runs in parts, and says so.
#[test]
fn what_the_device_lacks_runs_on_the_cpu_in_between() {
    let device = super::device();
    let mut random = Random::new();
    let mut graph = Graph::default();
    let x = graph.input(DType::F32, &[-1, 16]);
    let w = graph.constant(random.floats(&[16, 16]));
    let a = graph.node("MatMul", &[x, w], &[]);
    let sums = {
        let axis = graph.constant(Tensor::scalar(1i64));
        graph.node("CumSum", &[a, axis], &[])
    };
    let b = graph.node("MatMul", &[sums, w], &[]);
    graph.output(b);
    let input = random.floats(&[5, 16]);
    assert_eq!(graph.left_to_cpu(std::slice::from_ref(&input)), ["CumSum"]);
    graph.agrees_as("parts", std::slice::from_ref(&input), 1e-4);
    let executable = compile(&*device, &graph);
    run(&*executable, &input).unwrap();
    let operators = executable.operators();
    let places: Vec<_> = operators.iter().map(|operator| operator.placement).collect();
    assert_eq!(places, ["gpu", "cpu", "gpu"]);
}
