//! Sends spans to a collector, as OTLP over HTTP, from a thread of its own.

use crate::config::TracingSettings;
use crate::net::agent_config;
use anyhow::{Context, Result};
use bytes::Bytes;
use mortise_deploy::lower_priority;
use mortise_observe::TraceCounters;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use ureq::Agent;

/// Spans that are sent at once.
const MAX_BATCH_SPANS: usize = 512;

/// How long spans wait for others to be sent with.
const GATHER: Duration = Duration::from_secs(1);

/// How long the collector may take for one batch.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Largest answer of a collector that is read.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// What goes to the thread.
enum Message {
    /// The spans of one request.
    Spans(Vec<SpanData>),
    /// Send what waits now, and say so.
    Flush(SyncSender<()>),
}

/// The near end of the thread that exports.
pub(super) struct Exporter {
    outbox: SyncSender<Message>,
    counters: TraceCounters,
}

impl Exporter {
    pub(super) fn start(settings: &TracingSettings, counters: TraceCounters) -> Result<Self> {
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new(&settings.endpoint)?)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(settings.endpoint.clone())
            .with_timeout(TIMEOUT)
            .build()
            .context("tracing.endpoint")?;
        let resource = Resource::builder_empty().with_service_name(settings.service_name.clone());
        exporter.set_resource(&resource.build());
        let (outbox, inbox) = sync_channel(settings.max_queued_requests);
        let sender = Sender { exporter, counters: counters.clone(), is_failing: false };
        std::thread::Builder::new()
            .name("mortise-traces".to_string())
            .spawn(move || {
                lower_priority();
                sender.run(&inbox);
            })
            .context("cannot start the thread that exports traces")?;
        Ok(Self { outbox, counters })
    }

    /// Hands the spans of a request over, or drops them when too many wait.
    pub(super) fn send(&self, spans: Vec<SpanData>) {
        if self.outbox.try_send(Message::Spans(spans)).is_err() {
            self.counters.dropped();
        }
    }

    pub(super) fn flush(&self, limit: Duration) {
        let (done, is_done) = sync_channel(1);
        if self.outbox.try_send(Message::Flush(done)).is_ok() {
            // Spans that are not out by then are lost: the server ends.
            let _ = is_done.recv_timeout(limit);
        }
    }
}

/// The thread.
struct Sender {
    exporter: SpanExporter,
    counters: TraceCounters,
    is_failing: bool,
}

impl Sender {
    fn run(mut self, inbox: &Receiver<Message>) {
        while let Ok(first) = inbox.recv() {
            let (spans, flushed) = gather(first, inbox);
            if !spans.is_empty() {
                self.export(spans);
            }
            // Whoever waited may have given up.
            flushed.map(|done| done.try_send(()));
        }
    }

    fn export(&mut self, spans: Vec<SpanData>) {
        let count = spans.len();
        let outcome = pollster::block_on(self.exporter.export(spans));
        match (&outcome, self.is_failing) {
            (Err(error), false) => tracing::warn!(%error, "traces cannot be exported"),
            (Ok(()), true) => tracing::info!("traces are exported again"),
            _ => {}
        }
        self.is_failing = outcome.is_err();
        match outcome {
            Ok(()) => self.counters.exported(count),
            Err(_) => self.counters.failed(count),
        }
    }
}

/// The spans that come within [`GATHER`], up to a bound, or until a flush.
fn gather(first: Message, inbox: &Receiver<Message>) -> (Vec<SpanData>, Option<SyncSender<()>>) {
    let until = Instant::now() + GATHER;
    let mut spans = Vec::new();
    let mut next = Some(first);
    while let Some(message) = next {
        match message {
            Message::Spans(more) => spans.extend(more),
            Message::Flush(done) => return (spans, Some(done)),
        }
        if spans.len() >= MAX_BATCH_SPANS {
            break;
        }
        next = inbox.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
    }
    (spans, None)
}

/// Carries what the exporter sends.
#[derive(Debug)]
struct Collector(Agent);

impl Collector {
    fn new(endpoint: &str) -> Result<Self> {
        let config = Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            .tls_config(agent_config(endpoint).context("tracing.endpoint")?)
            .build();
        Ok(Self(config.into()))
    }
}

#[tonic::async_trait]
impl HttpClient for Collector {
    async fn send_bytes(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, HttpError> {
        let (head, mut body) = self.0.run(request.map(|body| body.to_vec()))?.into_parts();
        let body = body.with_config().limit(MAX_ANSWER_BYTES).read_to_vec()?;
        Ok(http::Response::from_parts(head, body.into()))
    }
}
