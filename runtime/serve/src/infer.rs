use crate::admission::Permit;
use crate::batch::{Done, Pending, Submission, run_one};
use crate::cache::{self, ResponseCache};
use crate::endpoint::Endpoint;
use crate::ensemble::{Ensemble, StepLog, StepRun};
use crate::lineup::{Lineup, Route, Variant};
use crate::registry::Registry;
use crate::revision::{Revision, byte_len};
use crate::routing::RequestFacts;
use crate::upstream::Upstream;
use crate::version_stats::{Execution, Timings};
use mortise_types::{CutShort, Error, ErrorKind, Result, RunControl, Tensor, TraceContext};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How much lower the bound is for runs that stay where they were received when
/// others wait there too: what is left is about what it costs to hand one on.
const CROWDED: u32 = 4;

/// One request for an inference. `..InferCall::default()` fills in what a
/// protocol does not have.
#[derive(Clone, Default)]
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
    /// What routers may look at; `None` where the protocol has nothing of it.
    pub facts: Option<&'a dyn RequestFacts>,
    /// Whose rate limit the request counts against: an API key or an address.
    pub client_key: Option<&'a str>,
    /// The trace that the request belongs to, for other servers that it needs.
    pub trace: Option<&'a TraceContext>,
    /// Where the steps of an ensemble are noted, of a request that is traced.
    pub steps: Option<&'a StepLog>,
    /// Whether more requests wait for the thread that received this one, and can
    /// go to no other: only very short runs stay there then.
    pub is_crowded: bool,
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
    /// What the version is called among those that share the traffic.
    pub variant: Arc<str>,
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
        let route = self.route_for(&endpoint, &call);
        self.infer_recorded(&endpoint, route, call).await
    }

    async fn infer_recorded(
        &self,
        endpoint: &Endpoint,
        route: Result<Route>,
        call: InferCall<'_>,
    ) -> Result<InferAnswer> {
        let recording = endpoint.stats.begin();
        let now = self.config.clock.now();
        let arrived = call.arrived.unwrap_or(now);
        let outcome = match route {
            Ok(route) => self.infer_routed(endpoint, &route, call, arrived).await,
            Err(error) => Err(error),
        };
        match &outcome {
            Ok(_) => recording.succeeded(self.config.clock.now() - now),
            Err(error) => recording.failed(error.kind()),
        }
        outcome
    }

    /// The revision that an open sequence began with; otherwise what the
    /// request names, or the router chooses.
    fn route_for(&self, endpoint: &Endpoint, call: &InferCall<'_>) -> Result<Route> {
        let step = call.sequence.as_ref().filter(|step| !step.start && call.version.is_none());
        let open = step.and_then(|step| endpoint.sequences.find(&step.id, self.config.clock.now()));
        match open {
            None => endpoint.route(call.version, call.facts, &call.inputs),
            Some(sequence) => {
                let lineup = endpoint.lineup_or_absence()?;
                Ok(lineup.keep(&sequence.revision))
            }
        }
    }

    /// Runs a request on the variant that was chosen. When that one cannot
    /// answer at all, another one does.
    async fn infer_routed(
        &self,
        endpoint: &Endpoint,
        route: &Route,
        call: InferCall<'_>,
        arrived: Instant,
    ) -> Result<InferAnswer> {
        let variant = route.variant();
        // A graph of our own is never absent.
        let fallback = route.fallback().filter(|_| variant.revision.is_custom());
        let is_needed_again = fallback.is_some() || route.has_shadows();
        let kept = is_needed_again.then(|| call.clone());
        let attempt = Attempt { arrived, has_fallback: fallback.is_some() };
        let mut outcome = self.infer_on(endpoint, variant, call, attempt).await;
        if let (Ok(answer), Some(label)) = (&mut outcome, route.label()) {
            answer.variant = label;
        }
        let took = self.config.clock.now() - arrived;
        route.record(outcome.as_ref().map(|_| took));
        match (outcome, fallback, kept) {
            (Err(error), Some(other), Some(call)) if error.kind() == ErrorKind::NotReady => {
                variant.stats.fell_back();
                let attempt = Attempt { arrived, has_fallback: false };
                self.infer_on(endpoint, other, call, attempt).await
            }
            (Ok(answer), _, Some(call)) => {
                for shadow in route.shadows() {
                    self.shadows.mirror(shadow, &call.inputs, &answer.outputs);
                }
                Ok(answer)
            }
            (outcome, ..) => outcome,
        }
    }

    async fn infer_on(
        &self,
        endpoint: &Endpoint,
        variant: &Variant,
        call: InferCall<'_>,
        attempt: Attempt,
    ) -> Result<InferAnswer> {
        let revision = variant.revision.clone();
        endpoint.check(&revision)?;
        let outcome = self.run_on(endpoint, &revision, call, attempt).await;
        let took = self.config.clock.now().saturating_duration_since(attempt.arrived);
        match outcome {
            Ok(answered) => {
                revision.stats.succeeded(answered.rows, took, &answered.timings);
                let Answered { outputs, timings, .. } = answered;
                let variant = variant.name.clone();
                Ok(InferAnswer { outputs, timings, revision, variant })
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
        attempt: Attempt,
    ) -> Result<Answered> {
        let rates = &revision.options().rate_limits;
        endpoint.rate_limiter.check(self.config.clock.now(), rates, call.client_key)?;
        let limits = self.limits(&call, revision, attempt);
        let selection = revision.select(call.outputs.as_deref())?;
        let InferCall { trace, steps, .. } = call;
        let request = Request { endpoint, revision, limits, trace, steps };
        let began = self.config.clock.now();
        let inputs = revision.bind(call.inputs)?;
        let bound = self.config.clock.now().saturating_duration_since(began);
        let rows = revision.row_count(&inputs);
        let done = match &revision.cache {
            _ if !revision.state().is_empty() => {
                self.run_in_sequence(&request, inputs, call.sequence).await?
            }
            Some(cache) => self.run_cached(&request, inputs, cache).await?,
            None => self.run_once(&request, inputs).await?,
        };
        let ran = self.config.clock.now();
        let outputs = pick(revision.name_outputs(done.outputs?), selection);
        let mut timings = done.timings;
        timings.compute_input += bound;
        timings.compute_output += self.config.clock.now().saturating_duration_since(ran);
        Ok(Answered { outputs, timings, rows })
    }

    /// Answers from the cache, or runs and keeps the answer.
    async fn run_cached(
        &self,
        request: &Request<'_>,
        inputs: Vec<Tensor>,
        cache: &ResponseCache,
    ) -> Result<Done> {
        let started = self.config.clock.now();
        let stats = &request.revision.stats;
        let digest = cache::digest(&inputs);
        let found = cache.get(&digest);
        let looked_up = self.config.clock.now().saturating_duration_since(started);
        if let Some(outputs) = found {
            stats.cache_hit(looked_up);
            return Ok(Done::new(Ok(outputs), Timings::default()));
        }
        let done = self.run_once(request, inputs).await?;
        let inserting = self.config.clock.now();
        if let Ok(outputs) = &done.outputs {
            cache.insert(digest, outputs);
        }
        let inserted = self.config.clock.now().saturating_duration_since(inserting);
        stats.cache_miss(looked_up + inserted);
        Ok(done)
    }

    /// Runs with the state of the sequence, and keeps what it has become. When
    /// the run fails, the state stays as it was.
    async fn run_in_sequence(
        &self,
        request: &Request<'_>,
        mut inputs: Vec<Tensor>,
        step: Option<SequenceStep>,
    ) -> Result<Done> {
        let Request { endpoint, revision, limits, .. } = request;
        let step = step.ok_or_else(|| {
            Error::invalid(format!(
                "model \"{}\" keeps state between requests: send the parameters sequence_id and, \
                 with the first one, sequence_start",
                endpoint.name()
            ))
        })?;
        // Admitted before it waits for its turn: what waits is counted.
        let permit = self.admit(endpoint, revision, byte_len(&inputs))?;
        let now = self.config.clock.now();
        let sequence = match step.start {
            true => endpoint.sequences.begin(&step.id, revision, now)?,
            false => endpoint.sequences.find(&step.id, now).ok_or_else(|| no_sequence(&step.id))?,
        };
        let turn = tokio::time::timeout_at(limits.deadline.into(), sequence.state.lock());
        let mut state = turn.await.map_err(|_elapsed| late())?;
        if sequence.is_over() {
            return Err(no_sequence(&step.id));
        }
        revision.state().put(&state, &mut inputs);
        let done = self.run_admitted(request, inputs, permit).await?;
        if let Ok(outputs) = &done.outputs {
            *state = revision.state().take(outputs);
        }
        if step.end {
            endpoint.sequences.end(&step.id, &sequence);
        }
        Ok(done)
    }

    async fn run_once(&self, request: &Request<'_>, inputs: Vec<Tensor>) -> Result<Done> {
        let permit = self.admit(request.endpoint, request.revision, byte_len(&inputs))?;
        if let Some(ensemble) = request.revision.ensemble() {
            return self.run_ensemble(request, ensemble, inputs, permit).await;
        }
        match request.revision.upstream() {
            Some(upstream) => Ok(self.run_upstream(request, upstream, inputs, permit).await),
            None => self.run_admitted(request, inputs, permit).await,
        }
    }

    /// Asks the other server, on no thread of ours. The permit is held until it
    /// answers. When another variant could answer instead, half of the time is
    /// left for it.
    async fn run_upstream(
        &self,
        request: &Request<'_>,
        upstream: &dyn Upstream,
        inputs: Vec<Tensor>,
        permit: Permit,
    ) -> Done {
        let started = self.config.clock.now();
        let Limits { deadline, has_fallback, .. } = request.limits;
        let left = deadline.saturating_duration_since(started);
        let until = if has_fallback { started + left / 2 } else { deadline };
        let outputs = match upstream.infer(inputs, until, request.trace).await {
            Err(error) if has_fallback && error.kind() == ErrorKind::Deadline => {
                Err(error.with_kind(ErrorKind::NotReady))
            }
            outputs => outputs,
        };
        let compute_infer = self.config.clock.now().saturating_duration_since(started);
        let timings = Timings { compute_infer, ..Timings::default() };
        request.revision.stats.executed(&Execution { rows: 1, timings });
        drop(permit);
        Done::new(outputs, timings)
    }

    /// Runs one step after another, each as a request to its own endpoint. The
    /// permit is held until the last.
    async fn run_ensemble(
        &self,
        request: &Request<'_>,
        ensemble: &Ensemble,
        inputs: Vec<Tensor>,
        permit: Permit,
    ) -> Result<Done> {
        let started = self.config.clock.now();
        let members = ensemble.members(self)?;
        let mut tensors = ensemble.begin(inputs);
        for (step, (endpoint, revision)) in ensemble.steps().iter().zip(members) {
            let call = InferCall {
                endpoint: &step.model,
                inputs: step.gather(&tensors)?,
                arrived: Some(request.limits.arrived),
                deadline: Some(request.limits.deadline),
                priority: request.limits.priority,
                trace: request.trace,
                is_crowded: request.limits.is_crowded,
                ..InferCall::default()
            };
            let (from, version) = (self.config.clock.now(), revision.version());
            let answer = self.infer_member(&endpoint, revision, call).await;
            if let Some(steps) = request.steps {
                steps.push(StepRun {
                    model: step.model.clone(),
                    version,
                    from,
                    until: self.config.clock.now(),
                    error: answer.as_ref().err().cloned(),
                });
            }
            let answer =
                answer.map_err(|error| error.context(format_args!("model \"{}\"", step.model)))?;
            step.scatter(answer.outputs, &mut tensors);
        }
        let outputs = ensemble.finish(&tensors);
        let compute_infer = self.config.clock.now().saturating_duration_since(started);
        let timings = Timings { compute_infer, ..Timings::default() };
        let rows = 1;
        request.revision.stats.executed(&Execution { rows, timings });
        drop(permit);
        Ok(Done::new(outputs, timings))
    }

    /// Boxed, since requests to ensembles contain requests.
    fn infer_member<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        revision: Arc<Revision>,
        call: InferCall<'a>,
    ) -> Pin<Box<dyn Future<Output = Result<InferAnswer>> + Send + 'a>> {
        let lineup = Arc::new(Lineup::single(revision));
        Box::pin(self.infer_recorded(endpoint, Ok(Route::past_router(lineup)), call))
    }

    async fn run_admitted(
        &self,
        request: &Request<'_>,
        inputs: Vec<Tensor>,
        permit: Permit,
    ) -> Result<Done> {
        let Request { revision, limits, .. } = request;
        if !self.runs_in_place(revision, byte_len(&inputs), limits.is_crowded) {
            return self.run_queued(request, inputs, permit).await;
        }
        // A plugin may turn out to be slow. Then the run begins again elsewhere.
        let kept = revision.is_custom().then(|| inputs.clone());
        match (self.run_here(revision, inputs, limits.deadline), kept) {
            (Ok(done), _) => {
                drop(permit);
                Ok(done)
            }
            (Err(why), Some(inputs)) => {
                revision.in_place.was_cut_short(why, self.config.clock.now());
                self.run_queued(request, inputs, permit).await
            }
            (Err(_), None) => Err(Error::internal("a graph was cut short")),
        }
    }

    /// The deadline is the earliest of the protocol's, the client's and the
    /// server's, unless the client's timeout only delays.
    fn limits(&self, call: &InferCall<'_>, revision: &Revision, attempt: Attempt) -> Limits {
        let Attempt { arrived, has_fallback } = attempt;
        let latest = call.deadline.unwrap_or(arrived + self.config.default_timeout);
        let own = call.timeout.and_then(|timeout| arrived.checked_add(timeout));
        let deadline = match revision.batcher.delays_on_timeout(call.priority) {
            true => latest,
            false => own.map_or(latest, |own| own.min(latest)),
        };
        let (timeout, priority) = (call.timeout, call.priority);
        let is_crowded = call.is_crowded;
        Limits { arrived, deadline, timeout, priority, has_fallback, is_crowded }
    }

    /// Short runs stay on the thread that received them while nothing waits.
    fn runs_in_place(&self, revision: &Revision, input_bytes: usize, is_crowded: bool) -> bool {
        let parts = if is_crowded { CROWDED } else { 1 };
        let bound = self.config.in_place_below / parts;
        revision.batcher.lets_pass()
            && revision.in_place.is_allowed(|| self.config.clock.now())
            && revision.predicted_time(input_bytes).is_some_and(|time| time < bound)
    }

    /// # Errors
    /// The run has to be made again where it may take longer.
    fn run_here(
        &self,
        revision: &Revision,
        inputs: Vec<Tensor>,
        deadline: Instant,
    ) -> std::result::Result<Done, CutShort> {
        if self.config.clock.now() >= deadline {
            return Ok(Done::new(Err(late()), Timings::default()));
        }
        let control = RunControl::new(Some(deadline), self.config.max_loop_iterations).brief();
        let done = run_one(revision, inputs, &control, Duration::ZERO);
        match control.was_cut_short() {
            None => Ok(done),
            Some(why) => Err(why),
        }
    }

    async fn run_queued(
        &self,
        request: &Request<'_>,
        inputs: Vec<Tensor>,
        permit: Permit,
    ) -> Result<Done> {
        let limits = &request.limits;
        let (reply, answer) = oneshot::channel();
        let pending = Pending { inputs, permit, reply };
        let submission = Submission {
            pending,
            arrived: limits.arrived,
            deadline: limits.deadline,
            timeout: limits.timeout,
            priority: limits.priority,
        };
        self.engine.submit(request.revision, request.endpoint.lane, submission)?;
        wait(answer, limits.deadline).await
    }

    /// Makes room by dropping abandoned work before it refuses.
    fn admit(&self, endpoint: &Endpoint, revision: &Revision, bytes: usize) -> Result<Permit> {
        endpoint.admit(&self.admitted_bytes, bytes).or_else(|_| {
            revision.batcher.drop_abandoned();
            endpoint.admit(&self.admitted_bytes, bytes)
        })
    }
}

/// A request whose revision is chosen.
struct Request<'a> {
    endpoint: &'a Endpoint,
    revision: &'a Arc<Revision>,
    limits: Limits,
    trace: Option<&'a TraceContext>,
    steps: Option<&'a StepLog>,
}

fn no_sequence(id: &SequenceId) -> Error {
    let id = match id {
        SequenceId::Number(number) => number.to_string(),
        SequenceId::Text(text) => format!("{text:?}"),
    };
    Error::invalid(format!(
        "there is no open sequence {id}: it ended, was silent for too long, or did not begin with \
         sequence_start"
    ))
}

/// What bounds the waiting of a request.
#[derive(Clone, Copy)]
struct Limits {
    arrived: Instant,
    deadline: Instant,
    timeout: Option<Duration>,
    priority: u64,
    has_fallback: bool,
    is_crowded: bool,
}

/// One try to answer a request.
#[derive(Clone, Copy)]
struct Attempt {
    arrived: Instant,
    /// Whether another variant answers when this one cannot.
    has_fallback: bool,
}

/// What a revision answered.
struct Answered {
    outputs: Vec<(String, Tensor)>,
    timings: Timings,
    rows: u64,
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

pub(crate) fn late() -> Error {
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
