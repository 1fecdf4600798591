use crate::admission::Permit;
use crate::endpoint::Endpoint;
use crate::pool::Job;
use crate::registry::Registry;
use crate::revision::{Revision, byte_len};
use crate::version_stats::{Execution, Timings};
use mortise_types::{Clock, Error, Result, RunControl, Tensor};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// One request for an inference. `..InferCall::default()` fills in what a
/// protocol does not have.
#[derive(Default)]
pub struct InferCall<'a> {
    pub endpoint: &'a str,
    /// As it stands in the request; `None` for the live version.
    pub version: Option<&'a str>,
    pub inputs: Vec<(String, Tensor)>,
    /// Names of the outputs to answer with, in that order; `None` for all.
    pub outputs: Option<Vec<String>>,
    /// When its first byte came; `None` for now. Timeouts count from it.
    pub arrived: Option<Instant>,
    /// The latest time for the answer; `None` for the server's default.
    pub deadline: Option<Instant>,
    /// The client's own timeout, which counts when it is the earlier one.
    pub timeout: Option<Duration>,
    /// 1 is the highest; 0 takes the endpoint's default.
    pub priority: u64,
    /// The sequence that the request belongs to, of a model that keeps state.
    pub sequence: Option<SequenceStep>,
    /// Whose rate limit the request counts against: an API key or an address.
    pub client_key: Option<&'a str>,
}

/// A request's place in a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceStep {
    pub id: SequenceId,
    /// First request of the sequence.
    pub start: bool,
    /// Last request of the sequence.
    pub end: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SequenceId {
    Number(u64),
    Text(String),
}

/// The answer to an [`InferCall`].
pub struct InferAnswer {
    /// The revision that computed all of the outputs.
    pub revision: Arc<Revision>,
    pub outputs: Vec<(String, Tensor)>,
    pub timings: Timings,
}

impl Registry {
    /// Runs a request on one revision, from admission to outputs. Dropping the
    /// future abandons the request: what has not begun is never run.
    ///
    /// # Errors
    /// `NotFound` for an unknown model or version, `NotReady` without a healthy
    /// live revision, `InvalidInput` when inputs or outputs do not fit the
    /// signature, `Overloaded` when a bound is reached, `Deadline`, or what the
    /// model reports.
    pub async fn infer(&self, call: InferCall<'_>) -> Result<InferAnswer> {
        let endpoint = self
            .endpoint(call.endpoint)
            .ok_or_else(|| Error::not_found(format!("unknown model \"{}\"", call.endpoint)))?;
        let recording = endpoint.stats.begin();
        let now = self.config.clock.now();
        let arrived = call.arrived.unwrap_or(now);
        let outcome = match endpoint.current(call.version) {
            Ok(revision) => self.infer_on(&endpoint, revision, call, arrived).await,
            Err(error) => Err(error),
        };
        match &outcome {
            Ok(_) => recording.succeeded(self.config.clock.now() - now),
            Err(error) => recording.failed(error.kind()),
        }
        outcome
    }

    async fn infer_on(
        &self,
        endpoint: &Endpoint,
        revision: Arc<Revision>,
        call: InferCall<'_>,
        arrived: Instant,
    ) -> Result<InferAnswer> {
        let outcome = self.run_on(endpoint, &revision, call, arrived).await;
        let took = self.config.clock.now().saturating_duration_since(arrived);
        match outcome {
            Ok(answered) => {
                revision.stats.succeeded(answered.rows, took, &answered.timings);
                let Answered { outputs, timings, .. } = answered;
                Ok(InferAnswer { outputs, timings, revision })
            }
            Err(error) => {
                revision.stats.failed(took);
                Err(error)
            }
        }
    }

    async fn run_on(
        &self,
        endpoint: &Endpoint,
        revision: &Arc<Revision>,
        call: InferCall<'_>,
        arrived: Instant,
    ) -> Result<Answered> {
        let deadline = self.deadline(&call, arrived);
        let selection = revision.select(call.outputs.as_deref())?;
        let inputs = revision.bind(call.inputs)?;
        let (input_bytes, rows) = (byte_len(&inputs), revision.row_count(&inputs));
        let permit = self.admit(endpoint, revision, input_bytes)?;
        let now = self.config.clock.now();
        let control = RunControl::new(Some(deadline), self.config.max_loop_iterations);
        let run = Run { revision: revision.clone(), inputs, control, permit };
        let done = match self.place(revision, input_bytes) {
            Place::Here => run.execute(now, &*self.config.clock),
            Place::Pool(pool) => {
                let (reply, answer) = oneshot::channel();
                let clock = self.config.clock.clone();
                pool.submit(endpoint.lane, RunJob { run, queued_at: now, clock, reply });
                wait(answer, deadline).await?
            }
        };
        let outputs = pick(revision.name_outputs(done.outputs?), selection);
        Ok(Answered { outputs, timings: done.timings, rows })
    }

    /// The earliest of the protocol's, the client's and the server's.
    fn deadline(&self, call: &InferCall<'_>, arrived: Instant) -> Instant {
        let latest = call.deadline.unwrap_or(arrived + self.config.default_timeout);
        let own = call.timeout.and_then(|timeout| arrived.checked_add(timeout));
        own.map_or(latest, |own| own.min(latest))
    }

    /// Makes room by dropping abandoned work before it refuses.
    fn admit(&self, endpoint: &Endpoint, revision: &Revision, bytes: usize) -> Result<Permit> {
        endpoint.admit(&self.admitted_bytes, bytes).or_else(|_| {
            let pool = if revision.is_custom() { &self.plugins } else { &self.compute };
            pool.drop_abandoned(endpoint.lane);
            endpoint.admit(&self.admitted_bytes, bytes)
        })
    }

    fn place(&self, revision: &Revision, input_bytes: usize) -> Place<'_> {
        if revision.is_custom() {
            return Place::Pool(&self.plugins);
        }
        match revision.predicted_time(input_bytes) {
            Some(time) if time < self.config.in_place_below => Place::Here,
            _ => Place::Pool(&self.compute),
        }
    }
}

/// Where a request runs.
enum Place<'a> {
    /// On the thread that received it.
    Here,
    Pool(&'a crate::pool::WorkerPool<RunJob>),
}

/// What a revision answered.
struct Answered {
    outputs: Vec<(String, Tensor)>,
    timings: Timings,
    rows: u64,
}

/// A request that has been admitted.
struct Run {
    revision: Arc<Revision>,
    inputs: Vec<Tensor>,
    control: RunControl,
    permit: Permit,
}

/// A run that ended, well or not.
struct Done {
    outputs: Result<Vec<Tensor>>,
    timings: Timings,
}

impl Run {
    /// Gives the permit back before it returns, so that a client that has its
    /// answer finds room for its next request.
    fn execute(self, queued_at: Instant, clock: &dyn Clock) -> Done {
        let now = clock.now();
        let queue = now.saturating_duration_since(queued_at);
        let is_late = self.control.deadline().is_some_and(|deadline| now >= deadline);
        let rows = self.revision.row_count(&self.inputs);
        let (outputs, compute_infer) = match is_late {
            true => (Err(late()), Duration::ZERO),
            false => self.revision.run(self.inputs, &self.control),
        };
        let timings = Timings { queue, compute_infer, ..Timings::default() };
        if outputs.is_ok() {
            self.revision.stats.executed(&Execution { rows, timings });
        }
        drop(self.permit);
        Done { outputs, timings }
    }
}

/// A run that waits for a thread.
pub(crate) struct RunJob {
    run: Run,
    queued_at: Instant,
    clock: Arc<dyn Clock>,
    reply: oneshot::Sender<Done>,
}

impl Job for RunJob {
    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    fn run(self) {
        let done = self.run.execute(self.queued_at, &*self.clock);
        // A client that left meanwhile needs no answer.
        let _ = self.reply.send(done);
    }
}

/// The answer, or a timeout at the deadline even if the run goes on: it notices
/// the deadline itself, between operators or at the next epoch.
async fn wait(answer: oneshot::Receiver<Done>, deadline: Instant) -> Result<Done> {
    match tokio::time::timeout_at(deadline.into(), answer).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(_closed)) => Err(Error::not_ready("the server is shutting down")),
        Err(_elapsed) => Err(late()),
    }
}

fn late() -> Error {
    Error::deadline("the deadline passed before the model could answer")
}

fn pick(outputs: Vec<(String, Tensor)>, selection: Option<Vec<usize>>) -> Vec<(String, Tensor)> {
    match selection {
        None => outputs,
        Some(positions) => {
            positions.into_iter().filter_map(|at| outputs.get(at).cloned()).collect()
        }
    }
}
