//! Runs whose memory holds poison before them: an element that no kernel
//! writes shows in the answer, and one written beyond its buffer behind it,
//! where the adapter does not drop such writes.

use super::check::lowered;
use crate::context::Context;
use crate::device::Generation;
use crate::lower::{Launch, Lowered, STATUS, Step};
use crate::operand::{Operand, Place};
use crate::pack::Packed;
use crate::params::Params;
use crate::program::Program;
use crate::ranges::{ALIGN, aligned};
use crate::shaders::{File, Kernel};
use mortise_compute::{CpuDevice, CpuOptions};
use mortise_graph::{GraphLimits, Plan};
use mortise_types::{DType, GraphBody, RunControl, Signature, Tensor, ValueId};

/// As a word of 32 bits a NaN, and -1.
const POISON: u8 = 0xff;

/// Answers of `plan`, every buffer of which has poisoned memory of its own.
///
/// # Panics
/// When the run fails or a kernel writes outside its buffers.
pub(crate) fn run(
    label: &str,
    generation: &Generation,
    plan: &Plan,
    inputs: &[Tensor],
) -> Vec<Tensor> {
    run_lowered(label, generation, plan, lowered(generation, plan), inputs)
}

fn run_lowered(
    label: &str,
    generation: &Generation,
    plan: &Plan,
    mut lowered: Lowered,
    inputs: &[Tensor],
) -> Vec<Tensor> {
    lowered.shares_memory = false;
    let (sizes, offsets) = (lowered.buffers.clone(), Packed::of(&lowered).offsets);
    let cpu = CpuDevice::new(CpuOptions { threads: 1 });
    let limits = GraphLimits { max_arena_bytes: usize::MAX, ..GraphLimits::default() };
    let program = Program::new(generation, &*cpu, plan, &limits, lowered).unwrap();

    let (context, control) = (&generation.context, RunControl::unbounded());
    let mut lease = generation.slots.acquire(context, &control).unwrap();
    let buffers = lease.buffers(context, program.sizes()).unwrap();
    for buffer in [&buffers.arena, &buffers.readback] {
        context.queue.write_buffer(buffer, 0, &vec![POISON; buffer.size() as usize]);
    }
    let outputs = program.run_in(&mut lease, generation, inputs.to_vec(), &control);
    let outputs = outputs.unwrap_or_else(|error| panic!("{label}: {error}"));

    let arena = read(context, &buffers.arena, program.arena_bytes());
    // Clearing the report takes more than its one word.
    for (index, (offset, bytes)) in offsets.iter().zip(&sizes).enumerate().skip(STATUS + 1) {
        let gap = (offset + bytes) as usize..(offset + aligned(*bytes) + ALIGN) as usize;
        let clean = arena[gap].iter().all(|byte| *byte == POISON);
        assert!(clean, "{label}: buffer {index} of {bytes} bytes is written beyond its end");
    }
    outputs
}

fn read(context: &Context, buffer: &wgpu::Buffer, bytes: u64) -> Vec<u8> {
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let target = context.buffer("test", bytes, usage, false).unwrap();
    let mut encoder = context.device.create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &target, 0, bytes);
    let submission = context.queue.submit([encoder.finish()]);
    target.map_async(wgpu::MapMode::Read, .., |mapped| mapped.unwrap());
    let wait = wgpu::PollType::Wait { submission_index: Some(submission), timeout: None };
    context.device.poll(wait).unwrap();
    let bytes = target.get_mapped_range(..).unwrap().to_vec();
    target.unmap();
    bytes
}

/// What one dispatch makes of words, in poisoned memory.
pub(crate) fn run_kernel(
    kernel: Kernel,
    inputs: &[Tensor],
    output: (DType, &[usize]),
    params: Params,
    groups: usize,
) -> Tensor {
    let values: Vec<_> = (0..=inputs.len() as u32).map(ValueId).collect();
    let (y, reads) = values.split_last().unwrap();
    let uploads =
        reads.iter().zip(1..).map(|(value, buffer)| Step::Upload { value: *value, buffer });
    let last = inputs.len() + 1;
    let operand = Operand::dense(Place::Arena(last), output.0, output.1);
    let launch = Launch {
        kernel,
        bindings: (1..=last).map(Place::Arena).collect(),
        params,
        groups: [groups as u32, 1, 1],
    };
    let bytes = |count: usize| count as u64 * 4;
    let mut buffers = vec![4];
    buffers.extend(inputs.iter().map(|tensor| bytes(tensor.len())));
    buffers.push(bytes(operand.len()));
    let mut steps: Vec<Step> = uploads.collect();
    steps.extend([Step::Launch(launch), Step::Download { value: *y, operand }]);
    let lowered = Lowered {
        steps,
        buffers,
        on_device: Vec::new(),
        checks: false,
        shares_memory: true,
        weights: Vec::new(),
    };
    let body = GraphBody { inputs: reads.to_vec(), nodes: Vec::new(), outputs: vec![*y] };
    let plan = Plan {
        body,
        constants: vec![None; values.len()],
        facts: Vec::new(),
        origins: Default::default(),
        signature: Signature::default(),
        rows_independent: false,
    };
    run_lowered("kernel", &super::device().generation(), &plan, lowered, inputs).remove(0)
}

/// A kernel that leaves the last of 16 elements out.
#[test]
fn an_element_that_no_kernel_writes_is_seen() {
    let strides = [0, 0, 0, 0, 0, 1];
    let params = Params::new().sizes(&[15, 0, 0, 0]);
    let params = params.sizes(&[1, 1, 1, 1, 1, 16]).sizes(&strides).sizes(&strides);
    let input = Tensor::from_vec(&[16], vec![1.0f32; 16]).unwrap();
    let kernel = Kernel::new(File::Copy, 2, &[]);
    let got = run_kernel(kernel, &[input], (DType::F32, &[16]), params, 1);
    let values = got.as_slice::<f32>().unwrap();
    assert_eq!(values[..15], [1.0; 15]);
    assert!(values[15].is_nan(), "{}", values[15]);
}
