use super::Tracer;
use super::context::{self, Parent};
use http::{HeaderMap, HeaderName, HeaderValue};
use mortise_serve::{InferAnswer, StepLog, StepRun};
use mortise_types::{Error, TraceContext};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// What a client spoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Grpc,
}

/// One request, traced or not. What is traced is exported when this is dropped.
pub(crate) struct RequestTrace {
    /// What upstreams are told.
    context: Option<TraceContext>,
    recorded: Option<Box<Recorded>>,
}

impl RequestTrace {
    pub(super) fn traced(recorded: Recorded) -> Self {
        let context = context::told(&recorded.compute);
        Self { context: Some(context), recorded: Some(Box::new(recorded)) }
    }

    /// Not traced here; others may trace what they do for it.
    pub(super) fn passed_on(parent: Option<Parent>) -> Self {
        Self { context: parent.map(|parent| context::told(parent.span())), recorded: None }
    }

    pub(crate) fn context(&self) -> Option<&TraceContext> {
        self.context.as_ref()
    }

    /// Where an ensemble notes its steps; `None` when nobody will ask.
    pub(crate) fn steps(&self) -> Option<&StepLog> {
        self.recorded.as_ref().map(|recorded| &recorded.steps)
    }

    /// The request was decoded in this time.
    pub(crate) fn decoded(&mut self, from: Instant, until: Instant) {
        if let Some(recorded) = &mut self.recorded {
            recorded.parts.push(Part::new("decode", from, until));
        }
    }

    /// The request was answered; the registry was asked at `asked`.
    pub(crate) fn answered(&mut self, asked: Instant, answer: &InferAnswer) {
        if let Some(recorded) = &mut self.recorded {
            recorded.answered(asked, answer);
        }
    }

    /// The answer was encoded from `from` until now.
    pub(crate) fn encoded(&mut self, from: Instant) {
        if let Some(recorded) = &mut self.recorded {
            recorded.parts.push(Part::new("encode", from, Instant::now()));
        }
    }

    /// The request ended, and its reply says so.
    pub(crate) fn ended(&mut self, error: Option<&Error>) {
        if let Some(recorded) = &mut self.recorded {
            recorded.status = match error {
                None => Status::Ok,
                Some(error) => Status::error(error.message().to_owned()),
            };
        }
    }

    /// Tells the client in which trace the request is, when it is traced.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        let Some(recorded) = &self.recorded else { return };
        if let Ok(value) = HeaderValue::from_str(&context::told(&recorded.own).parent) {
            headers.insert(HeaderName::from_static("traceresponse"), value);
        }
    }
}

/// A request that is traced.
pub(super) struct Recorded {
    tracer: Arc<Tracer>,
    protocol: Protocol,
    /// The client's span.
    parent: Option<SpanContext>,
    own: SpanContext,
    /// The span in which upstreams are asked.
    compute: SpanContext,
    endpoint: String,
    /// Of what answered.
    version: Option<(u64, Arc<str>)>,
    arrived: Instant,
    /// The wall clock's time of `arrived`.
    arrived_at: SystemTime,
    parts: Vec<Part>,
    /// Of an ensemble.
    steps: StepLog,
    status: Status,
}

/// A stretch of a request.
struct Part {
    name: &'static str,
    from: Instant,
    until: Instant,
}

impl Part {
    fn new(name: &'static str, from: Instant, until: Instant) -> Self {
        Self { name, from, until }
    }
}

const COMPUTE: &str = "compute";

impl Recorded {
    pub(super) fn new(
        tracer: Arc<Tracer>,
        protocol: Protocol,
        parent: Option<Parent>,
        endpoint: &str,
        arrived: Instant,
    ) -> Self {
        let ids = RandomIdGenerator::default();
        let parent = parent.map(|parent| parent.span().clone());
        let trace_id = parent.as_ref().map_or_else(|| ids.new_trace_id(), SpanContext::trace_id);
        let state = parent.as_ref().map_or(TraceState::NONE, |span| span.trace_state().clone());
        let span = || {
            SpanContext::new(trace_id, ids.new_span_id(), TraceFlags::SAMPLED, false, state.clone())
        };
        Self {
            tracer,
            protocol,
            own: span(),
            compute: span(),
            parent,
            endpoint: endpoint.to_owned(),
            version: None,
            arrived,
            arrived_at: SystemTime::now() - arrived.elapsed(),
            parts: Vec::new(),
            steps: StepLog::default(),
            status: Status::Unset,
        }
    }

    /// The stretches follow each other from `asked` on; where requests were
    /// merged, they are those of the run.
    fn answered(&mut self, asked: Instant, answer: &InferAnswer) {
        self.version = Some((answer.revision.version(), answer.variant.clone()));
        let timings = &answer.timings;
        let mut from = asked;
        for (name, took) in [
            ("queue", timings.queue),
            ("input", timings.compute_input),
            ("transform", timings.transform),
            (COMPUTE, timings.compute_infer.saturating_sub(timings.transform)),
            ("output", timings.compute_output),
        ] {
            let until = from + took;
            if !took.is_zero() {
                self.parts.push(Part::new(name, from, until));
            }
            from = until;
        }
    }

    fn spans(&mut self, until: Instant) -> Vec<SpanData> {
        let (mut parts, steps) = (std::mem::take(&mut self.parts), self.steps.take());
        parts.extend(compute_of(&steps, &parts));
        let mut spans = vec![self.request_span(until)];
        spans.extend(parts.into_iter().map(|part| self.part_span(part)));
        spans.extend(steps.into_iter().map(|step| self.step_span(step)));
        spans
    }

    fn request_span(&mut self, until: Instant) -> SpanData {
        let protocol = match self.protocol {
            Protocol::Http => "http",
            Protocol::Grpc => "grpc",
        };
        let mut attributes = vec![
            KeyValue::new("mortise.endpoint", self.endpoint.clone()),
            KeyValue::new("network.protocol.name", protocol),
        ];
        if let Some((version, variant)) = self.version.take() {
            attributes.push(KeyValue::new("mortise.version", version.cast_signed()));
            attributes.push(KeyValue::new("mortise.variant", variant));
        }
        let name = Cow::Owned(format!("infer {}", self.endpoint));
        let span = self.span(self.own.clone(), name, self.arrived, until);
        SpanData {
            parent_span_id: self.parent.as_ref().map_or(SpanId::INVALID, SpanContext::span_id),
            parent_span_is_remote: self.parent.is_some(),
            span_kind: SpanKind::Server,
            attributes,
            status: std::mem::take(&mut self.status),
            ..span
        }
    }

    fn part_span(&self, part: Part) -> SpanData {
        let context = match part.name {
            COMPUTE => self.compute.clone(),
            _ => self.next_context(),
        };
        self.span(context, Cow::Borrowed(part.name), part.from, part.until)
    }

    /// A model that an ensemble ran, within its compute.
    fn step_span(&self, step: StepRun) -> SpanData {
        let name = Cow::Owned(format!("step {}", step.model));
        let span = self.span(self.next_context(), name, step.from, step.until);
        let attributes = vec![
            KeyValue::new("mortise.endpoint", step.model),
            KeyValue::new("mortise.version", step.version.cast_signed()),
        ];
        let status = match step.error {
            None => Status::Unset,
            Some(error) => Status::error(error.message().to_owned()),
        };
        SpanData { parent_span_id: self.compute.span_id(), attributes, status, ..span }
    }

    fn next_context(&self) -> SpanContext {
        SpanContext::new(
            self.own.trace_id(),
            RandomIdGenerator::default().new_span_id(),
            TraceFlags::SAMPLED,
            false,
            self.own.trace_state().clone(),
        )
    }

    /// A span within the request's own.
    fn span(
        &self,
        span_context: SpanContext,
        name: Cow<'static, str>,
        from: Instant,
        until: Instant,
    ) -> SpanData {
        let at = |time: Instant| {
            let after: Duration = time.saturating_duration_since(self.arrived);
            self.arrived_at + after
        };
        SpanData {
            span_context,
            parent_span_id: self.own.span_id(),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name,
            start_time: at(from),
            end_time: at(until),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder("mortise")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
        }
    }
}

/// The stretch in which an ensemble ran, of a request that was not answered:
/// its steps need a span to lie in.
fn compute_of(steps: &[StepRun], parts: &[Part]) -> Option<Part> {
    let (first, last) = (steps.first()?, steps.last()?);
    let is_known = parts.iter().any(|part| part.name == COMPUTE);
    (!is_known).then(|| Part::new(COMPUTE, first.from, last.until))
}

/// Also when the client has left, and nobody said how the request ended.
impl Drop for Recorded {
    fn drop(&mut self) {
        let spans = self.spans(Instant::now());
        if let Some(exporter) = &self.tracer.exporter {
            exporter.send(spans);
        }
    }
}
