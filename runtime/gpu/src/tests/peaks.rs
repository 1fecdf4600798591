//! What `mortise bench` asks of the device.

use super::check::{Graph, Random};
use super::device;
use mortise_compute::{Device, compile_graph};
use mortise_graph::GraphLimits;
use mortise_types::{Assets, DType};

#[test]
fn peaks_and_times_are_measured() {
    let device = device();
    let peaks = device.peaks().unwrap();
    assert!(peaks.f32_per_second > 1e6 && peaks.bytes_per_second > 1e6, "{peaks:?}");

    let mut random = Random::new();
    let mut graph = Graph::default();
    let x = graph.input(DType::F32, &[-1, 16]);
    let w = graph.constant(random.floats(&[16, 8]));
    let y = graph.node("MatMul", &[x, w], &[]);
    graph.output(y);
    let limits = GraphLimits::default();
    let executable = compile_graph(&*device, &graph.def, &Assets::default(), &limits).unwrap();
    let time = executable.time(&[random.floats(&[5, 16])], 3).unwrap();
    assert!(!time.is_zero());
    assert_eq!(executable.operators()[0].placement, "gpu");
}
