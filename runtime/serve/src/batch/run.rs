//! Running a batch, and answering each of its members.

use super::queue::{Dropped, Member};
use super::{Engine, Pending, merge};
use crate::infer::late;
use crate::revision::{Ran, Revision};
use crate::version_stats::{Execution, Timings};
use mortise_types::{ErrorKind, Result, RunControl, Tensor};
use std::time::Duration;

/// A request that ended, well or not.
pub(crate) struct Done {
    pub(crate) outputs: Result<Vec<Tensor>>,
    pub(crate) timings: Timings,
}

/// Runs members together. When that fails, each runs again alone, once: only
/// the guilty one fails.
pub(super) fn run(engine: &Engine, revision: &Revision, members: Vec<Member<Pending>>) {
    if members.len() == 1 {
        return members.into_iter().for_each(|member| run_alone(engine, revision, member));
    }
    match run_together(engine, revision, &members) {
        Ok(parts) => {
            members.into_iter().zip(parts).for_each(|(member, done)| member.answer(done));
        }
        // The deadline of the last: those of all have passed.
        Err(error) if error.kind() == ErrorKind::Deadline => members
            .into_iter()
            .for_each(|member| member.answer(Done::failed(error.clone(), Duration::ZERO))),
        Err(_) => members.into_iter().for_each(|member| run_alone(engine, revision, member)),
    }
}

fn run_together(
    engine: &Engine,
    revision: &Revision,
    members: &[Member<Pending>],
) -> Result<Vec<Done>> {
    let started = engine.clock.now();
    let inputs: Vec<&[Tensor]> =
        members.iter().map(|member| member.payload.inputs.as_slice()).collect();
    let merged = merge::join(&inputs)?;
    let compute_input = engine.clock.now().saturating_duration_since(started);
    let deadline = members.iter().map(|member| member.deadline).max();
    let control = RunControl::new(deadline, engine.max_loop_iterations);
    let Ran { outputs, took: compute_infer, transforms: transform } =
        revision.run(merged, &control);
    let ran = engine.clock.now();
    let rows: Vec<usize> = members.iter().map(|member| member.rows).collect();
    let parts = merge::split(&outputs?, &rows).inspect_err(|error| {
        let endpoint = revision.endpoint();
        tracing::error!(endpoint, %error, "merged rows came back wrong; merging is off for it");
        revision.batcher.forbid_merging();
    })?;
    let compute_output = engine.clock.now().saturating_duration_since(ran);
    let queue = Duration::ZERO;
    let timings = Timings { compute_input, compute_infer, transform, compute_output, queue };
    let rows = rows.iter().sum::<usize>() as u64;
    revision.stats.executed(&Execution { rows, timings });
    let done = |(member, outputs): (&Member<Pending>, Vec<Tensor>)| {
        let queue = started.saturating_duration_since(member.since);
        Done::new(Ok(outputs), Timings { queue, ..timings })
    };
    Ok(members.iter().zip(parts).map(done).collect())
}

fn run_alone(engine: &Engine, revision: &Revision, mut member: Member<Pending>) {
    let now = engine.clock.now();
    let queue = now.saturating_duration_since(member.since);
    if now >= member.deadline {
        return member.answer(Done::failed(late(), queue));
    }
    let inputs = std::mem::take(&mut member.payload.inputs);
    let control = RunControl::new(Some(member.deadline), engine.max_loop_iterations);
    let done = run_one(revision, inputs, &control, queue);
    member.answer(done);
}

/// Runs one request on this thread. What was cut short is no answer, and is not
/// counted.
pub(crate) fn run_one(
    revision: &Revision,
    inputs: Vec<Tensor>,
    control: &RunControl,
    queue: Duration,
) -> Done {
    let rows = revision.row_count(&inputs);
    let Ran { outputs, took: compute_infer, transforms: transform } = revision.run(inputs, control);
    let timings = Timings { queue, compute_infer, transform, ..Timings::default() };
    if outputs.is_ok() && control.was_cut_short().is_none() {
        revision.stats.executed(&Execution { rows, timings });
    }
    Done::new(outputs, timings)
}

/// Answers what did not run.
pub(super) fn answer_dropped(dropped: Dropped<Pending>) {
    drop(dropped.gone);
    for pending in dropped.expired {
        pending.answer(Done::failed(late(), Duration::ZERO));
    }
}

impl Done {
    pub(crate) fn new(outputs: Result<Vec<Tensor>>, timings: Timings) -> Self {
        Self { outputs, timings }
    }

    fn failed(error: mortise_types::Error, queue: Duration) -> Self {
        Self::new(Err(error), Timings { queue, ..Timings::default() })
    }
}

impl Member<Pending> {
    fn answer(self, done: Done) {
        self.payload.answer(done);
    }
}

impl Pending {
    /// Gives the permit back first, so that a client that has its answer finds
    /// room for its next request.
    fn answer(self, done: Done) {
        drop(self.permit);
        // A client that left meanwhile needs no answer.
        let _ = self.reply.send(done);
    }
}
