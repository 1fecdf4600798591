use crate::admission::{Budget, Share};
use crate::lineup::Variant;
use crate::revision::Revision;
use crate::variant_stats::VariantStats;
use mortise_types::{DType, Error, Result, RunControl, Tensor};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Copies that wait for one version; further ones are dropped and counted.
const MAX_WAITING: usize = 64;

/// Bytes of tensors that the copies for all versions may hold. Further ones
/// are dropped and counted.
const MAX_WAITING_BYTES: u64 = 256 << 20;

/// Threads that run copies, one for each version. Copies for versions beyond
/// them are dropped and counted.
const MAX_WORKERS: u64 = 256;

/// How long a thread waits for another copy before it ends.
const LINGER: Duration = Duration::from_secs(10);

/// How long a reply waits to hand its copy over.
const MAX_WAIT: Duration = Duration::from_micros(100);

/// How long one copy may run. Nobody waits for it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Numbers that differ by less, in relation to the larger, count as equal.
const RELATIVE_TOLERANCE: f64 = 1e-5;

type Named = Vec<(String, Tensor)>;

/// Runs copies of requests and compares the replies, so that the client's own
/// reply never waits. Each version that gets copies has a queue and a thread of
/// its own: one that hangs holds up its own copies alone.
pub(crate) struct Shadows {
    on_start: fn(),
    linger: Duration,
    workers: Arc<Budget>,
    bytes: Arc<Budget>,
}

/// The copies that one version has still to run.
#[derive(Default)]
pub(crate) struct CopyQueue {
    state: Mutex<QueueState>,
    arrived: Condvar,
}

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<Copy>,
    /// A thread runs the copies; it ends when none came for a while.
    has_worker: bool,
}

/// A copy of one request.
struct Copy {
    revision: Arc<Revision>,
    stats: Arc<VariantStats>,
    inputs: Named,
    /// What the client got.
    reply: Named,
    _bytes: Share,
}

impl Shadows {
    /// `on_start` runs first on each thread.
    pub(crate) fn new(on_start: fn()) -> Self {
        let (workers, bytes) = (Budget::new(MAX_WORKERS), Budget::new(MAX_WAITING_BYTES));
        Self { on_start, linger: LINGER, workers, bytes }
    }

    /// Hands a copy over, or drops it when a bound is reached.
    pub(crate) fn mirror(&self, variant: &Variant, inputs: &Named, reply: &Named) {
        let copy = || {
            Some(Copy {
                _bytes: self.bytes.take(byte_len(inputs) + byte_len(reply))?,
                revision: variant.revision.clone(),
                stats: variant.stats.clone(),
                inputs: inputs.clone(),
                reply: reply.clone(),
            })
        };
        if !self.enqueue(&variant.revision.copies, copy) {
            variant.stats.shadow_dropped();
        }
    }

    /// Whether there was room. The copy is made only then.
    fn enqueue(&self, copies: &Arc<CopyQueue>, copy: impl FnOnce() -> Option<Copy>) -> bool {
        // The thread that runs copies may have been stopped while it held this.
        let Some(mut state) = copies.state.try_lock_for(MAX_WAIT) else { return false };
        if state.waiting.len() >= MAX_WAITING {
            return false;
        }
        let Some(copy) = copy() else { return false };
        state.has_worker = state.has_worker || self.start_worker(copies.clone());
        if state.has_worker {
            state.waiting.push_back(copy);
            copies.arrived.notify_one();
        }
        state.has_worker
    }

    /// Whether a thread could be had.
    fn start_worker(&self, copies: Arc<CopyQueue>) -> bool {
        let Some(share) = self.workers.take(1) else { return false };
        let (on_start, linger) = (self.on_start, self.linger);
        let work = move || {
            let _share = share;
            on_start();
            while let Some(copy) = copies.next(linger) {
                copy.run();
            }
        };
        let spawned = std::thread::Builder::new().name("mortise-shadow".to_string()).spawn(work);
        spawned.inspect_err(|error| tracing::warn!(%error, "no thread for copies")).is_ok()
    }
}

impl CopyQueue {
    /// The next copy; `None`, and no thread is at it any more, when none comes.
    fn next(&self, linger: Duration) -> Option<Copy> {
        let mut state = self.state.lock();
        self.arrived.wait_while_for(&mut state, |state| state.waiting.is_empty(), linger);
        let copy = state.waiting.pop_front();
        state.has_worker = copy.is_some();
        copy
    }
}

impl Copy {
    fn run(self) {
        // A version that was replaced is let go as soon as may be.
        if self.revision.retired().is_some() {
            return self.stats.shadow_dropped();
        }
        let until = Instant::now() + TIMEOUT;
        let control = RunControl::new(Some(until), RunControl::DEFAULT_LOOP_ITERATIONS);
        match self.revision.run_blocking(self.inputs, &control) {
            Ok(outputs) => match largest_difference(&self.reply, &outputs) {
                Ok(difference) => self.stats.shadow_compared(difference),
                Err(_) => self.stats.shadow_compared(Some(f64::INFINITY)),
            },
            Err(_) => self.stats.shadow_failed(),
        }
    }
}

fn byte_len(tensors: &Named) -> u64 {
    tensors.iter().map(|(_, tensor)| tensor.byte_len() as u64).sum()
}

/// The largest difference between outputs of the same name; `None` when they
/// are equal within the tolerance.
///
/// # Errors
/// When an output is missing or of another dtype or shape.
fn largest_difference(reply: &Named, copy: &Named) -> Result<Option<f64>> {
    let mut largest = None;
    for (name, ours) in reply {
        let theirs = copy.iter().find(|(given, _)| given == name).map(|(_, tensor)| tensor);
        let theirs = theirs.ok_or_else(|| Error::invalid(format!("no output \"{name}\"")))?;
        largest = larger(largest, difference(ours, theirs)?);
    }
    Ok(largest)
}

fn difference(ours: &Tensor, theirs: &Tensor) -> Result<Option<f64>> {
    if (ours.dtype(), ours.shape()) != (theirs.dtype(), theirs.shape()) {
        return Err(Error::invalid("another dtype or shape"));
    }
    Ok(match ours.dtype() {
        DType::F32 => of_numbers(ours.as_slice::<f32>()?, theirs.as_slice::<f32>()?),
        DType::F64 => of_numbers(ours.as_slice::<f64>()?, theirs.as_slice::<f64>()?),
        DType::String => {
            let is_equal = ours.strings()?.iter().eq(theirs.strings()?.iter());
            (!is_equal).then_some(1.0)
        }
        _ => (ours.bytes() != theirs.bytes()).then_some(1.0),
    })
}

fn of_numbers<T: std::marker::Copy + Into<f64>>(ours: &[T], theirs: &[T]) -> Option<f64> {
    ours.iter().zip(theirs).fold(None, |largest, (&a, &b)| {
        let (a, b): (f64, f64) = (a.into(), b.into());
        let scale = a.abs().max(b.abs()).max(1.0);
        let gap = (a - b).abs();
        let is_equal = a == b || (a.is_nan() && b.is_nan()) || gap <= RELATIVE_TOLERANCE * scale;
        if is_equal { largest } else { larger(largest, Some(gap)) }
    })
}

fn larger(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
#[path = "shadow_tests.rs"]
mod tests;
