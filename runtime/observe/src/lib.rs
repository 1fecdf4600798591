//! What the server counts about itself, kept in bounded memory and rendered in
//! Prometheus' text format. What is counted about endpoints lives with them.
//!
//! Handles are made once; counting is one atomic addition. No histogram goes
//! through the exporter: it would keep every sample until the next scrape.

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// The server's own counters.
pub struct Observer {
    pub http: HttpCounters,
    exporter: PrometheusHandle,
}

/// Counters of the data plane's listener. Clones count together.
#[derive(Clone)]
pub struct HttpCounters {
    connections: Gauge,
    accepted: Counter,
    refused_accepts: Counter,
    connection_waits: Counter,
    timed_out: Counter,
    evicted: Counter,
    failed_handshakes: Counter,
    request_body_bytes: Counter,
    response_body_bytes: Counter,
    /// One for each of [`STATUSES`], and one for all others.
    responses: Vec<Counter>,
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

impl Observer {
    pub fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let exporter = recorder.handle();
        let http = metrics::with_local_recorder(&recorder, HttpCounters::register);
        Self { http, exporter }
    }

    /// All counters in Prometheus' text format.
    pub fn render(&self) -> String {
        self.exporter.render()
    }
}

impl Default for Observer {
    fn default() -> Self {
        Self::new()
    }
}

impl HttpCounters {
    fn register() -> Self {
        describe_gauge!("mortise_http_connections", "open connections");
        describe_counter!("mortise_http_accepted_total", "connections accepted");
        describe_counter!("mortise_http_accept_errors_total", "accepts that the system refused");
        describe_counter!(
            "mortise_http_connection_waits_total",
            "times that http.max_connections kept a connection waiting"
        );
        describe_counter!(
            "mortise_http_connections_timed_out_total",
            "connections closed for http.header_timeout_ms or http.idle_timeout_ms"
        );
        describe_counter!(
            "mortise_http_connections_evicted_total",
            "idle connections closed to make room for others"
        );
        describe_counter!("mortise_http_tls_handshakes_failed_total", "TLS handshakes that failed");
        describe_counter!("mortise_http_request_body_bytes_total", "bodies read, decompressed");
        describe_counter!("mortise_http_response_body_bytes_total", "bodies of infer replies");
        describe_counter!("mortise_http_responses_total", "responses by status");
        let by_status = |status| counter!("mortise_http_responses_total", "status" => status);
        Self {
            connections: gauge!("mortise_http_connections"),
            accepted: counter!("mortise_http_accepted_total"),
            refused_accepts: counter!("mortise_http_accept_errors_total"),
            connection_waits: counter!("mortise_http_connection_waits_total"),
            timed_out: counter!("mortise_http_connections_timed_out_total"),
            evicted: counter!("mortise_http_connections_evicted_total"),
            failed_handshakes: counter!("mortise_http_tls_handshakes_failed_total"),
            request_body_bytes: counter!("mortise_http_request_body_bytes_total"),
            response_body_bytes: counter!("mortise_http_response_body_bytes_total"),
            responses: STATUSES.iter().map(|row| row.1).chain(["other"]).map(by_status).collect(),
        }
    }

    /// Counts a connection as open until the guard is dropped.
    pub fn connected(&self) -> OpenConnection {
        self.accepted.increment(1);
        self.connections.increment(1.0);
        OpenConnection(self.connections.clone())
    }

    pub fn accept_failed(&self) {
        self.refused_accepts.increment(1);
    }

    pub fn connection_waited(&self) {
        self.connection_waits.increment(1);
    }

    pub fn connections_timed_out(&self, count: u64) {
        self.timed_out.increment(count);
    }

    pub fn connections_evicted(&self, count: u64) {
        self.evicted.increment(count);
    }

    pub fn handshake_failed(&self) {
        self.failed_handshakes.increment(1);
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
        let first = observer.http.connected();
        let _second = observer.http.connected();
        drop(first);
        observer.http.responded(200);
        observer.http.responded(200);
        observer.http.responded(418);
        observer.http.body_read(70);
        observer.http.body_sent(30);
        observer.http.accept_failed();
        observer.http.connection_waited();
        let page = observer.render();
        for line in [
            "mortise_http_connections 1",
            "mortise_http_accepted_total 2",
            "mortise_http_accept_errors_total 1",
            "mortise_http_connection_waits_total 1",
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
