//! What the server counts about itself, kept in bounded memory and rendered in
//! Prometheus' text format. What is counted about endpoints lives with them.
//!
//! Handles are made once; counting is one atomic addition. No histogram goes
//! through the exporter: it would keep every sample until the next scrape.

mod histogram;

use histogram::Histogram;
use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::sync::Arc;
use std::time::Duration;

/// The server's own counters.
pub struct Observer {
    pub http: HttpCounters,
    pub grpc: GrpcCounters,
    pub traces: TraceCounters,
    exporter: PrometheusHandle,
}

/// Counters of the data plane over HTTP. Clones count together.
#[derive(Clone)]
pub struct HttpCounters {
    pub connections: ConnectionCounters,
    overhead: OverheadCounters,
    request_body_bytes: Counter,
    response_body_bytes: Counter,
    /// One for each of [`STATUSES`], and one for all others.
    responses: Vec<Counter>,
}

/// Counters of the data plane over gRPC. Clones count together.
#[derive(Clone)]
pub struct GrpcCounters {
    pub connections: ConnectionCounters,
    overhead: OverheadCounters,
    /// One for each of [`CODES`].
    responses: Vec<Counter>,
}

/// Counters of the connections of one listener. Clones count together.
#[derive(Clone)]
pub struct ConnectionCounters {
    open: Gauge,
    accepted: Counter,
    refused_accepts: Counter,
    waits: Counter,
    timed_out: Counter,
    evicted: Counter,
    failed_handshakes: Counter,
}

/// What a listener takes for inferences. Clones count together.
#[derive(Clone)]
struct OverheadCounters {
    decode_ns: Counter,
    encode_ns: Counter,
    total: Arc<Histogram>,
}

/// Counters of traces. Clones count together.
#[derive(Clone)]
pub struct TraceCounters {
    exported: Counter,
    failed: Counter,
    dropped: Counter,
}

/// Time that a listener took for one inference.
#[derive(Clone, Copy, Debug)]
pub struct Overhead {
    pub decode: Duration,
    pub encode: Duration,
    /// From the received body to the encoded reply, without waiting for a
    /// thread and running the model.
    pub total: Duration,
}

/// The statuses that are counted by name.
const STATUSES: [(u16, &str); 12] = [
    (200, "200"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (405, "405"),
    (409, "409"),
    (413, "413"),
    (429, "429"),
    (500, "500"),
    (503, "503"),
    (504, "504"),
];

/// gRPC's codes by number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

impl Observer {
    pub fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let exporter = recorder.handle();
        let register =
            || (HttpCounters::register(), GrpcCounters::register(), TraceCounters::register());
        let (http, grpc, traces) = metrics::with_local_recorder(&recorder, register);
        Self { http, grpc, traces, exporter }
    }

    /// All counters in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut page = self.exporter.render();
        self.http.overhead.render(&mut page, "http");
        self.grpc.overhead.render(&mut page, "grpc");
        page
    }
}

impl Default for Observer {
    fn default() -> Self {
        Self::new()
    }
}

impl ConnectionCounters {
    /// Of the listener that the settings call `plane`.
    fn register(plane: &str) -> Self {
        let count = |what: &str, meaning: String| {
            let name = format!("mortise_{plane}_{what}_total");
            describe_counter!(name.clone(), meaning);
            counter!(name)
        };
        let open = format!("mortise_{plane}_connections");
        describe_gauge!(open.clone(), "open connections");
        Self {
            open: gauge!(open),
            accepted: count("accepted", "connections accepted".into()),
            refused_accepts: count("accept_errors", "accepts that the system refused".into()),
            waits: count(
                "connection_waits",
                format!("times that {plane}.max_connections kept a connection waiting"),
            ),
            timed_out: count(
                "connections_timed_out",
                format!("connections closed for the timeouts under {plane}"),
            ),
            evicted: count(
                "connections_evicted",
                "idle connections closed to make room for others".into(),
            ),
            failed_handshakes: count("tls_handshakes_failed", "TLS handshakes that failed".into()),
        }
    }

    /// Counts a connection as open until the guard is dropped.
    pub fn connected(&self) -> OpenConnection {
        self.accepted.increment(1);
        self.open.increment(1.0);
        OpenConnection(self.open.clone())
    }

    pub fn accept_failed(&self) {
        self.refused_accepts.increment(1);
    }

    pub fn waited(&self) {
        self.waits.increment(1);
    }

    pub fn timed_out(&self, count: u64) {
        self.timed_out.increment(count);
    }

    pub fn evicted(&self, count: u64) {
        self.evicted.increment(count);
    }

    pub fn handshake_failed(&self) {
        self.failed_handshakes.increment(1);
    }
}

impl OverheadCounters {
    /// Of the listener that the settings call `plane`.
    fn register(plane: &str) -> Self {
        let count = |what: &str, meaning: &'static str| {
            let name = format!("mortise_{plane}_{what}_nanoseconds_total");
            describe_counter!(name.clone(), meaning);
            counter!(name)
        };
        Self {
            decode_ns: count("decode", "decoding requests"),
            encode_ns: count("encode", "encoding replies"),
            total: Arc::default(),
        }
    }

    fn record(&self, spent: Overhead) {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.decode_ns.increment(ns(spent.decode));
        self.encode_ns.increment(ns(spent.encode));
        self.total.record(spent.total);
    }

    fn render(&self, page: &mut String, plane: &str) {
        self.total.render(
            page,
            &format!("mortise_{plane}_overhead_seconds"),
            "time from a received body to its encoded reply, without waiting and running",
        );
    }
}

impl TraceCounters {
    fn register() -> Self {
        let count = |name: &'static str, meaning: &'static str| {
            describe_counter!(name, meaning);
            counter!(name)
        };
        Self {
            exported: count("mortise_trace_spans_exported_total", "spans that a collector took"),
            failed: count("mortise_trace_spans_failed_total", "spans that no collector took"),
            dropped: count(
                "mortise_traces_dropped_total",
                "traced requests beyond tracing.max_queued_requests",
            ),
        }
    }

    pub fn exported(&self, spans: usize) {
        self.exported.increment(spans as u64);
    }

    pub fn failed(&self, spans: usize) {
        self.failed.increment(spans as u64);
    }

    /// Counts one request.
    pub fn dropped(&self) {
        self.dropped.increment(1);
    }
}

impl GrpcCounters {
    fn register() -> Self {
        describe_counter!("mortise_grpc_responses_total", "calls answered by code");
        let by_code = |code| counter!("mortise_grpc_responses_total", "code" => code);
        Self {
            connections: ConnectionCounters::register("grpc"),
            overhead: OverheadCounters::register("grpc"),
            responses: CODES.iter().copied().map(by_code).collect(),
        }
    }

    /// Counts one answered inference: what the listener itself took for it.
    pub fn answered(&self, spent: Overhead) {
        self.overhead.record(spent);
    }

    /// Counts a call, or the beginning of a stream, by the number of its code.
    pub fn responded(&self, code: usize) {
        if let Some(counter) = self.responses.get(code) {
            counter.increment(1);
        }
    }
}

impl HttpCounters {
    fn register() -> Self {
        describe_counter!("mortise_http_request_body_bytes_total", "bodies read, decompressed");
        describe_counter!("mortise_http_response_body_bytes_total", "bodies of infer replies");
        describe_counter!("mortise_http_responses_total", "responses by status");
        let by_status = |status| counter!("mortise_http_responses_total", "status" => status);
        Self {
            connections: ConnectionCounters::register("http"),
            overhead: OverheadCounters::register("http"),
            request_body_bytes: counter!("mortise_http_request_body_bytes_total"),
            response_body_bytes: counter!("mortise_http_response_body_bytes_total"),
            responses: STATUSES.iter().map(|row| row.1).chain(["other"]).map(by_status).collect(),
        }
    }

    /// Counts one answered inference: what the listener itself took for it.
    pub fn answered(&self, spent: Overhead) {
        self.overhead.record(spent);
    }

    pub fn body_read(&self, bytes: usize) {
        self.request_body_bytes.increment(bytes as u64);
    }

    pub fn body_sent(&self, bytes: usize) {
        self.response_body_bytes.increment(bytes as u64);
    }

    pub fn responded(&self, status: u16) {
        let position = STATUSES.iter().position(|row| row.0 == status);
        if let Some(counter) = self.responses.get(position.unwrap_or(STATUSES.len())) {
            counter.increment(1);
        }
    }
}

/// A connection that is counted as open.
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_rendered() {
        let observer = Observer::new();
        let first = observer.http.connections.connected();
        let _second = observer.http.connections.connected();
        drop(first);
        observer.http.responded(200);
        observer.http.responded(200);
        observer.http.responded(418);
        observer.http.body_read(70);
        observer.http.body_sent(30);
        observer.http.connections.accept_failed();
        observer.grpc.connections.waited();
        observer.grpc.responded(16);
        let page = observer.render();
        for line in [
            "mortise_http_connections 1",
            "mortise_http_accepted_total 2",
            "mortise_http_accept_errors_total 1",
            "mortise_http_connection_waits_total 0",
            "mortise_grpc_connection_waits_total 1",
            "mortise_grpc_responses_total{code=\"UNAUTHENTICATED\"} 1",
            "mortise_http_request_body_bytes_total 70",
            "mortise_http_response_body_bytes_total 30",
            "mortise_http_responses_total{status=\"200\"} 2",
            "mortise_http_responses_total{status=\"other\"} 1",
            "mortise_http_responses_total{status=\"504\"} 0",
        ] {
            assert!(page.lines().any(|have| have == line), "{line} is not in\n{page}");
        }
    }
}
