//! Loss of the device, memory that runs out, and memory that must not grow.

use super::check::{Graph, Random};
use mortise_compute::{Device, Executable, compile_graph};
use mortise_graph::GraphLimits;
use mortise_types::{Assets, Attribute, DType, ErrorKind, RunControl, Tensor};
use std::sync::Arc;

fn mlp(random: &mut Random, hidden: usize) -> Graph {
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

fn compile(device: &dyn Device, graph: &Graph) -> Arc<dyn Executable> {
    compile_graph(device, &graph.def, &Assets::default(), &GraphLimits::default()).unwrap()
}

fn run(executable: &dyn Executable, input: &Tensor) -> mortise_types::Result<Vec<Tensor>> {
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

/// Batches of changing sizes, deployments and removals.
#[test]
fn memory_stays_flat() {
    let device = super::open();
    let mut random = Random::new();
    let kept = mlp(&mut random, 64);
    let served = compile(&*device, &kept);
    let mut settled = (0, 0, 0);
    for round in 0..40 {
        let hidden = 8 + random.usize(200);
        let other = mlp(&mut random, hidden);
        let deployed = compile(&*device, &other);
        for _ in 0..10 {
            let rows = 1 + random.usize(if round < 20 { 200 } else { 199 });
            let input = random.floats(&[rows, 16]);
            let got = run(&*served, &input).unwrap();
            assert_eq!(got[0].shape(), [rows, 4]);
            run(&*deployed, &input).unwrap();
        }
        drop(deployed);
        if round == 19 {
            run(&*served, &random.floats(&[200, 16])).unwrap();
            settled = device.memory();
        }
    }
    let (weights, chunks, slots) = device.memory();
    assert!(weights <= settled.0, "weights: {weights} after {}", settled.0);
    assert_eq!(chunks, settled.1);
    assert_eq!(slots, settled.2);
    assert_eq!(device.counters().losses, 0);
    drop(served);
    assert_eq!(device.memory().0, 0, "everything comes back with the last model");
    assert_eq!(device.memory().1, 0);
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
