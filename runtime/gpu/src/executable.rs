//! A graph on the GPU: one program for each set of input shapes that occurs.

use crate::device::{Generation, Shared};
use crate::lower;
use crate::measure::WARM_UP;
use crate::program::Program;
use crate::weights::WeightCache;
use mortise_compute::{Device, Executable, Footprint, OperatorInfo, Ticket};
use mortise_graph::{GraphLimits, Plan};
use mortise_types::{Error, ErrorKind, Result, RunControl, Shape, Signature, Tensor, VARIABLE};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Programs that an executable keeps: batch sizes come in buckets, and a
/// variable sequence length in as many as clients send.
const MAX_PROGRAMS: usize = 32;

pub(crate) struct GpuExecutable {
    shared: Arc<Shared>,
    plan: Plan,
    limits: GraphLimits,
    programs: Mutex<Programs>,
    /// When the device is tried again after it was full.
    full_until: Mutex<Option<Instant>>,
    /// The whole plan on the CPU, for shapes and types that need it and for
    /// when the device is gone. Also knows the signature.
    cpu: Arc<dyn Executable>,
}

/// Programs of one generation of the device.
#[derive(Default)]
struct Programs {
    generation: Weak<Generation>,
    cache: WeightCache,
    known: HashMap<Vec<Shape>, Entry>,
    clock: u64,
}

struct Entry {
    /// `None` where the CPU does all of it.
    program: Option<Arc<Program>>,
    used_at: u64,
}

impl GpuExecutable {
    /// # Errors
    /// `Overloaded` when the weights do not fit the device; as the CPU device.
    pub(crate) fn new(shared: Arc<Shared>, plan: Plan, limits: &GraphLimits) -> Result<Arc<Self>> {
        let cpu = shared.cpu.compile(plan.clone(), limits)?;
        let (programs, full_until) = (Mutex::default(), Mutex::default());
        let made = Self { shared, plan, limits: limits.clone(), programs, full_until, cpu };
        // Weights go up when a model is deployed, not with its first request.
        if let (Some(generation), Some(shapes)) = (made.shared.generation(), made.first_shapes()) {
            made.program(&generation, &shapes).inspect_err(|error| made.note(error))?;
        }
        Ok(Arc::new(made))
    }

    /// One row, where nothing but the batch is variable.
    fn first_shapes(&self) -> Option<Vec<Shape>> {
        let shape = |dims: &Vec<i64>| {
            let dim = |(axis, dim): (usize, &i64)| match (axis, *dim) {
                (0, VARIABLE) => Some(1),
                (_, dim) => usize::try_from(dim).ok(),
            };
            dims.iter().enumerate().map(dim).collect::<Option<Shape>>()
        };
        self.plan.signature.inputs.iter().map(|spec| shape(&spec.shape)).collect()
    }

    fn program(
        &self,
        generation: &Arc<Generation>,
        shapes: &[Shape],
    ) -> Result<Option<Arc<Program>>> {
        let mut programs = self.programs.lock();
        if !std::ptr::eq(programs.generation.as_ptr(), Arc::as_ptr(generation)) {
            *programs = Programs { generation: Arc::downgrade(generation), ..Programs::default() };
        }
        programs.clock += 1;
        let now = programs.clock;
        if let Some(entry) = programs.known.get_mut(shapes) {
            entry.used_at = now;
            return Ok(entry.program.clone());
        }
        let program = self.build(generation, &programs.cache, shapes)?.map(Arc::new);
        if programs.known.len() >= MAX_PROGRAMS {
            let oldest = programs.known.iter().min_by_key(|(_, entry)| entry.used_at);
            if let Some(key) = oldest.map(|(key, _)| key.clone()) {
                programs.known.remove(&key);
            }
        }
        let entry = Entry { program: program.clone(), used_at: now };
        programs.known.insert(shapes.to_vec(), entry);
        Ok(program)
    }

    fn build(
        &self,
        generation: &Generation,
        cache: &WeightCache,
        shapes: &[Shape],
    ) -> Result<Option<Program>> {
        let cpu: &dyn Device = &*self.shared.cpu;
        let made = || {
            let plan = self.plan.specialised(shapes, &self.limits, cpu.evaluate())?;
            let Generation { context, heap, tuning, .. } = generation;
            let lowered = lower::lower(context, heap, cache, tuning, &plan)?;
            Program::new(generation, cpu, &plan, &self.limits, lowered)
        };
        match made() {
            Ok(program) if program.is_empty() => Ok(None),
            Ok(program) => within_budget(&self.limits, &program).map(|()| Some(program)),
            // What the device cannot do for these shapes the CPU does, or says
            // what is wrong with them.
            Err(error) if is_unfit(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn run(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Vec<Tensor>> {
        check_inputs(&self.plan.signature, &inputs)?;
        control.check()?;
        let Some(generation) = self.usable() else {
            return self.run_on_cpu(inputs, control);
        };
        let rows = self.rows(&inputs);
        let padded_rows = rows.map(bucket);
        let shape = |tensor: &Tensor| {
            let mut shape = Shape::from_slice(tensor.shape());
            if let Some(rows) = padded_rows {
                shape[0] = rows;
            }
            shape
        };
        let shapes: Vec<Shape> = inputs.iter().map(shape).collect();
        let is_empty = shapes.iter().any(|shape| shape.contains(&0));
        if is_empty || inputs.iter().any(has_wide_integers) {
            return self.run_on_cpu(inputs, control);
        }
        let Some(program) = self.program(&generation, &shapes)? else {
            return self.run_on_cpu(inputs, control);
        };
        let padded = match (rows, padded_rows) {
            (Some(rows), Some(padded)) if rows != padded => {
                inputs.iter().map(|tensor| pad_rows(tensor, padded)).collect::<Result<_>>()?
            }
            _ => inputs,
        };
        let outputs = program.run(&generation, padded, control)?;
        match (rows, padded_rows) {
            (Some(rows), Some(padded)) if rows != padded => {
                outputs.into_iter().map(|tensor| first_rows(&tensor, rows)).collect()
            }
            _ => Ok(outputs),
        }
    }

    /// The device, unless it is gone or was full a moment ago.
    fn usable(&self) -> Option<Arc<Generation>> {
        let mut full_until = self.full_until.lock();
        if full_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        *full_until = None;
        drop(full_until);
        self.shared.generation()
    }

    /// Counts that the device was full, frees what idle runs hold of it, and
    /// has the CPU serve this graph for a while.
    fn note(&self, error: &Error) {
        if error.kind() != ErrorKind::Overloaded {
            return;
        }
        self.shared.count_out_of_memory();
        if let Some(generation) = self.shared.generation() {
            generation.slots.shed();
        }
        *self.full_until.lock() = Some(Instant::now() + self.shared.retry);
    }

    fn run_on_cpu(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Vec<Tensor>> {
        self.shared.count_fallback();
        self.cpu.execute(inputs, control)?.wait()
    }

    /// The number of rows, where rows may be added.
    fn rows(&self, inputs: &[Tensor]) -> Option<usize> {
        let rows = *inputs.first()?.shape().first()?;
        let variable = |shape: &[i64]| shape.first() == Some(&VARIABLE);
        let signature = &self.plan.signature;
        let fits = self.plan.rows_independent
            && signature.inputs.iter().all(|spec| variable(&spec.shape))
            && signature.outputs.iter().all(|spec| variable(&spec.shape))
            && inputs.iter().all(|tensor| tensor.shape().first() == Some(&rows));
        fits.then_some(rows)
    }
}

impl Executable for GpuExecutable {
    fn signature(&self) -> &Signature {
        self.cpu.signature()
    }

    fn footprint(&self) -> Footprint {
        let programs = self.programs.lock();
        let known: Vec<&Program> =
            programs.known.values().filter_map(|entry| entry.program.as_deref()).collect();
        let mut weights = HashMap::new();
        for weight in known.iter().flat_map(|program| &program.weights) {
            weights.insert(Arc::as_ptr(weight), weight.bytes as usize);
        }
        let on_device: usize = weights.values().sum();
        let on_host = self.cpu.footprint();
        Footprint {
            weight_bytes: on_host.weight_bytes + on_device,
            peak_arena_bytes: known
                .iter()
                .map(|program| program.arena_bytes() as usize)
                .max()
                .unwrap_or(0)
                .max(on_host.peak_arena_bytes),
            packed_copies: on_host.packed_copies + on_device,
            ..on_host
        }
    }

    fn operators(&self) -> Vec<OperatorInfo> {
        let programs = self.programs.lock();
        let latest = programs.known.values().max_by_key(|entry| entry.used_at);
        let program = latest.and_then(|entry| entry.program.as_ref());
        program.map_or_else(|| self.cpu.operators(), |program| program.operators.clone())
    }

    fn time(&self, inputs: &[Tensor], repeats: usize) -> Result<Duration> {
        let repeats = repeats.max(1);
        if let Some(generation) = self.shared.generation() {
            let shapes: Vec<Shape> = inputs.iter().map(|t| Shape::from_slice(t.shape())).collect();
            let program = self.program(&generation, &shapes)?;
            if let Some(program) = program.filter(|program| program.is_whole()) {
                return program.time(&generation, repeats, WARM_UP);
            }
        }
        let (control, start) = (RunControl::unbounded(), Instant::now());
        for _ in 0..repeats {
            self.run(inputs.to_vec(), &control)?;
        }
        Ok(start.elapsed() / repeats as u32)
    }

    fn rows_independent(&self) -> bool {
        self.cpu.rows_independent()
    }

    fn execute(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Ticket> {
        let outputs = self.run(inputs, control).inspect_err(|error| self.note(error))?;
        Ok(Ticket::ready(Ok(outputs)))
    }
}

/// # Errors
/// `LimitExceeded` when the graph takes more of the device than its plugin may
/// use. The CPU does not step in: the plugin's owner decides.
fn within_budget(limits: &GraphLimits, program: &Program) -> Result<()> {
    let hit = |name: &str, limit: u64, needs: u64, what: &str| {
        Error::limit(format!("the limit {name} = {limit} was hit: the graph takes {needs} {what}"))
    };
    let (bytes, limit) = (program.device_bytes(), limits.max_device_bytes);
    if bytes > limit {
        return Err(hit("max_graph_device_bytes", limit, bytes, "bytes of device memory"));
    }
    let (count, limit) = (program.dispatch_count as u64, limits.max_dispatches);
    if count > limit {
        return Err(hit("max_graph_dispatches", limit, count, "dispatches a run"));
    }
    Ok(())
}

/// Whether the CPU is asked instead.
fn is_unfit(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::InvalidInput | ErrorKind::Unsupported | ErrorKind::LimitExceeded
    )
}

/// The number of rows that a program is made for: a power of two or one and a
/// half of it, so that a third of the rows at most are padding.
pub(crate) fn bucket(rows: usize) -> usize {
    let power = rows.next_power_of_two();
    let between = power / 4 * 3;
    if between >= rows && between > 0 { between } else { power }
}

/// An `INT64` that the device's 32 bits would not hold.
fn has_wide_integers(tensor: &Tensor) -> bool {
    let wide = |values: &[i64]| values.iter().any(|value| i32::try_from(*value).is_err());
    tensor.as_slice::<i64>().is_ok_and(wide)
}

fn pad_rows(tensor: &Tensor, rows: usize) -> Result<Tensor> {
    let mut shape = Shape::from_slice(tensor.shape());
    shape[0] = rows;
    let Some(bytes) = tensor.bytes() else {
        let strings = tensor.strings()?;
        let missing = shape.iter().product::<usize>() - strings.len();
        let padded = strings.iter().chain(std::iter::repeat_n(&b""[..], missing)).collect();
        return Tensor::from_strings(&shape, padded);
    };
    let mut padded = Tensor::zeros(tensor.dtype(), &shape)?;
    if let Some(target) = padded.mut_bytes() {
        target[..bytes.len()].copy_from_slice(bytes);
    }
    Ok(padded)
}

fn first_rows(tensor: &Tensor, rows: usize) -> Result<Tensor> {
    let mut shape = Shape::from_slice(tensor.shape());
    let all = shape.first().copied().unwrap_or(1);
    if all <= rows {
        return Ok(tensor.clone());
    }
    shape[0] = rows;
    let Some(storage) = tensor.storage() else {
        let count: usize = shape.iter().product();
        let strings = tensor.strings()?.iter().take(count).collect();
        return Tensor::from_strings(&shape, strings);
    };
    let bytes = storage.len() / all * rows;
    Tensor::from_bytes(tensor.dtype(), &shape, storage.to_shared().slice(..bytes))
}

fn check_inputs(signature: &Signature, inputs: &[Tensor]) -> Result<()> {
    let specs = &signature.inputs;
    if specs.len() != inputs.len() {
        let (want, got) = (specs.len(), inputs.len());
        return Err(Error::invalid(format!("the graph takes {want} inputs, got {got}")));
    }
    specs.iter().zip(inputs).try_for_each(|(spec, tensor)| spec.check(tensor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_waste_little() {
        let cases = [(1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 8), (33, 48), (129, 192)];
        for (rows, want) in cases {
            assert_eq!(bucket(rows), want, "{rows}");
        }
        for rows in 1..5000 {
            assert!(bucket(rows) >= rows && bucket(rows) < rows * 3 / 2 + 2);
        }
    }

    #[test]
    fn rows_are_padded_and_cut_again() {
        let tensor = Tensor::from_vec(&[3, 2], vec![1i16, 2, 3, 4, 5, 6]).unwrap();
        let padded = pad_rows(&tensor, 4).unwrap();
        assert_eq!(padded.as_slice::<i16>().unwrap(), [1, 2, 3, 4, 5, 6, 0, 0]);
        let back = first_rows(&padded, 3).unwrap();
        assert_eq!(back.as_slice::<i16>().unwrap(), tensor.as_slice::<i16>().unwrap());
    }
}
