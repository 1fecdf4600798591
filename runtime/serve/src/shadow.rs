use crate::lineup::Variant;
use crate::revision::Revision;
use crate::variant_stats::VariantStats;
use mortise_types::{DType, Error, Result, RunControl, Tensor};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Copies that wait; further ones are dropped and counted.
const MAX_WAITING: usize = 64;

/// How long one copy may run. Nobody waits for it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Numbers that differ by less, in relation to the larger, count as equal.
const RELATIVE_TOLERANCE: f64 = 1e-5;

type Named = Vec<(String, Tensor)>;

/// Runs copies of requests on a thread of its own and compares the replies, so
/// that the client's own reply never waits.
pub(crate) struct Shadows(SyncSender<Copy>);

/// A copy of one request.
struct Copy {
    revision: Arc<Revision>,
    stats: Arc<VariantStats>,
    inputs: Named,
    /// What the client got.
    reply: Named,
}

impl Shadows {
    /// # Errors
    /// When the operating system refuses the thread.
    pub(crate) fn new(on_start: fn()) -> std::io::Result<Self> {
        let (copies, inbox) = sync_channel(MAX_WAITING);
        std::thread::Builder::new().name("mortise-shadow".to_string()).spawn(move || {
            on_start();
            run_all(&inbox);
        })?;
        Ok(Self(copies))
    }

    /// Hands a copy over, or drops it when too many wait.
    pub(crate) fn mirror(&self, variant: &Variant, inputs: &Named, reply: &Named) {
        let copy = Copy {
            revision: variant.revision.clone(),
            stats: variant.stats.clone(),
            inputs: inputs.clone(),
            reply: reply.clone(),
        };
        if self.0.try_send(copy).is_err() {
            variant.stats.shadow_dropped();
        }
    }
}

fn run_all(inbox: &Receiver<Copy>) {
    while let Ok(copy) = inbox.recv() {
        let until = Instant::now() + TIMEOUT;
        let control = RunControl::new(Some(until), RunControl::DEFAULT_LOOP_ITERATIONS);
        match copy.revision.run_blocking(copy.inputs, &control) {
            Ok(outputs) => match largest_difference(&copy.reply, &outputs) {
                Ok(difference) => copy.stats.shadow_compared(difference),
                Err(_) => copy.stats.shadow_compared(Some(f64::INFINITY)),
            },
            Err(_) => copy.stats.shadow_failed(),
        }
    }
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
mod tests {
    use super::*;

    fn named(values: &[f32]) -> Named {
        vec![("y".to_string(), Tensor::from_vec(&[values.len()], values.to_vec()).unwrap())]
    }

    #[test]
    fn differences_are_measured_beyond_rounding() {
        let cases: [(&[f32], &[f32], Option<f64>); 3] = [
            (&[1.0, 2.0], &[1.0, 2.0], None),
            (&[1.0, 2.0], &[1.000_001, 2.0], None),
            (&[1.0, 2.0], &[1.5, 4.0], Some(2.0)),
        ];
        for (ours, theirs, want) in cases {
            assert_eq!(largest_difference(&named(ours), &named(theirs)).unwrap(), want);
        }
        assert!(largest_difference(&named(&[1.0]), &named(&[1.0, 2.0])).is_err());
        assert!(largest_difference(&named(&[1.0]), &Vec::new()).is_err());
    }
}
