//! The metrics listener: `GET /metrics` in Prometheus' text format.

mod machine;
mod triton;

use crate::app::App;
use crate::control::{Handler, Reply, reply};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use machine::Machine;
use mortise_deploy::{EvidenceInfo, RolloutPhase, RolloutStatus};
use mortise_host::PluginStats;
use mortise_serve::{
    DurationCount, Endpoint, LATENCY_BOUNDS_US, Readiness, Revision, RoutingSnapshot,
    StatsSnapshot, Variant, VariantStatsSnapshot, VersionStatsSnapshot,
};
use std::fmt::Write;
use std::sync::Arc;

const TEXT: &str = "text/plain; version=0.0.4";

pub(crate) struct Metrics {
    app: Arc<App>,
    machine: Machine,
}

impl Metrics {
    pub(crate) fn new(app: Arc<App>) -> Arc<Self> {
        Arc::new(Self { app, machine: Machine::default() })
    }
}

impl Handler for Metrics {
    async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Reply {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => {
                reply(StatusCode::OK, TEXT, Bytes::from(render(&self.app, &self.machine)))
            }
            _ => reply(StatusCode::NOT_FOUND, TEXT, Bytes::from_static(b"try GET /metrics\n")),
        }
    }
}

/// One endpoint with what is exported about it.
struct Row {
    endpoint: Arc<Endpoint>,
    stats: StatsSnapshot,
    /// One for each version, ascending.
    versions: Vec<VersionStatsSnapshot>,
}

fn render(app: &App, machine: &Machine) -> String {
    let rows: Vec<Row> = app
        .registry
        .list()
        .into_iter()
        .map(|endpoint| Row {
            stats: endpoint.stats(),
            versions: endpoint.version_stats(),
            endpoint,
        })
        .collect();
    let mut page = Page::default();
    page.family("mortise_ready", "gauge", "1 when the server takes requests");
    page.line("mortise_ready", "", u64::from(app.is_ready()));
    page.family("mortise_admitted_bytes", "gauge", "bytes of inputs of requests under way");
    page.line("mortise_admitted_bytes", "", app.registry.admitted_bytes());
    page.family("mortise_draining_revisions", "gauge", "replaced revisions with requests left");
    page.line("mortise_draining_revisions", "", app.registry.draining().len() as u64);
    device_counters(&mut page, app);
    endpoint_gauges(&mut page, &rows);
    endpoint_counters(&mut page, &rows);
    latency(&mut page, &rows);
    stages(&mut page, &rows);
    batches(&mut page, &rows);
    plugins(&mut page, &rows);
    variants(&mut page, &rows);
    routers(&mut page, &rows);
    rollouts(&mut page, &app.deployer.rollouts_under_way());
    triton::render(&mut page, &rows);
    machine.render(&mut page);
    page.0.push_str(&app.observer.render());
    page.0
}

fn device_counters(page: &mut Page, app: &App) {
    let counters = app.registry.device().counters();
    let counts = [
        ("mortise_device_losses_total", "times the device was lost", counters.losses),
        (
            "mortise_device_fallback_runs_total",
            "runs that the CPU did instead of the device",
            counters.fallback_runs,
        ),
        (
            "mortise_device_out_of_memory_total",
            "runs and deployments that failed because the device's memory was full",
            counters.out_of_memory,
        ),
    ];
    for (name, about, count) in counts {
        page.family(name, "counter", about);
        page.line(name, "", count);
    }
}

fn endpoint_gauges(page: &mut Page, rows: &[Row]) {
    page.family("mortise_endpoint_ready", "gauge", "1 when the endpoint can answer");
    for row in rows {
        let is_ready = row.endpoint.readiness() == Readiness::Ready;
        page.line("mortise_endpoint_ready", &row.labels(), u64::from(is_ready));
    }
    page.family("mortise_version_ready", "gauge", "1 when a version of an endpoint can answer");
    for row in rows {
        for (labels, revision) in row.revisions() {
            let is_ready = row.endpoint.readiness_of(&revision) == Readiness::Ready;
            page.line("mortise_version_ready", &labels, u64::from(is_ready));
        }
    }
    page.family("mortise_revision", "gauge", "number of the live revision");
    for row in rows {
        if let Some(revision) = row.endpoint.live() {
            page.line("mortise_revision", &row.labels(), revision.number());
        }
    }
    page.family("mortise_requests_in_flight", "gauge", "requests running and waiting");
    for row in rows {
        page.line("mortise_requests_in_flight", &row.labels(), row.stats.in_flight);
    }
}

fn endpoint_counters(page: &mut Page, rows: &[Row]) {
    page.family("mortise_requests_total", "counter", "requests, however they ended");
    for row in rows {
        page.line("mortise_requests_total", &row.labels(), row.stats.requests);
    }
    page.family("mortise_requests_cancelled_total", "counter", "requests whose client left");
    for row in rows {
        page.line("mortise_requests_cancelled_total", &row.labels(), row.stats.cancelled);
    }
    page.family("mortise_requests_failed_total", "counter", "failed requests by kind");
    for row in rows {
        for (kind, count) in &row.stats.failures {
            let labels = format!("{},kind=\"{kind:?}\"", row.labels());
            page.line("mortise_requests_failed_total", &labels, *count);
        }
    }
}

fn latency(page: &mut Page, rows: &[Row]) {
    const NAME: &str = "mortise_request_duration_seconds";
    page.family(NAME, "histogram", "time of answered requests");
    for row in rows {
        let mut so_far = 0;
        for (count, bound_us) in row.stats.latency.iter().zip(LATENCY_BOUNDS_US) {
            so_far += count;
            let labels = format!("{},le=\"{}\"", row.labels(), bound_us as f64 / 1e6);
            page.line(&format!("{NAME}_bucket"), &labels, so_far);
        }
        let total: u64 = row.stats.latency.iter().sum();
        page.line(&format!("{NAME}_bucket"), &format!("{},le=\"+Inf\"", row.labels()), total);
        let seconds = row.stats.latency_sum_us as f64 / 1e6;
        page.line(&format!("{NAME}_sum"), &row.labels(), seconds);
        page.line(&format!("{NAME}_count"), &row.labels(), total);
    }
}

/// What is read from a version's statistics for one stage.
type StageReading = fn(&VersionStatsSnapshot) -> DurationCount;

const STAGES: [(&str, StageReading); 5] = [
    ("queue", |v| v.queue),
    ("input", |v| v.compute_input),
    ("transform", |v| v.transform),
    ("compute", |v| DurationCount {
        total_ns: v.compute_infer.total_ns.saturating_sub(v.transform.total_ns),
        ..v.compute_infer
    }),
    ("output", |v| v.compute_output),
];

/// Where the time of requests goes; decoding and encoding are the listeners'
/// to tell.
fn stages(page: &mut Page, rows: &[Row]) {
    page.family("mortise_stage_seconds_total", "counter", "time of answered requests by stage");
    for (labels, version) in rows.iter().flat_map(Row::by_version) {
        for (stage, read) in STAGES {
            let seconds = read(version).total_ns as f64 / 1e9;
            let labels = format!("{labels},stage=\"{stage}\"");
            page.line("mortise_stage_seconds_total", &labels, seconds);
        }
    }
    page.family("mortise_queued_bytes", "gauge", "bytes of inputs that wait");
    for (labels, version) in rows.iter().flat_map(Row::by_version) {
        page.line("mortise_queued_bytes", &labels, version.queued_bytes);
    }
    page.family("mortise_model_memory_bytes", "gauge", "weights and working memory of graphs");
    for (labels, revision) in rows.iter().flat_map(Row::revisions) {
        page.line("mortise_model_memory_bytes", &labels, revision.memory_bytes());
    }
}

fn batches(page: &mut Page, rows: &[Row]) {
    page.family("mortise_runs_total", "counter", "runs by their rows, above 64 by powers of two");
    for (labels, version) in rows.iter().flat_map(Row::by_version) {
        for batch in &version.batches {
            let labels = format!("{labels},rows=\"{}\"", batch.batch_size);
            page.line("mortise_runs_total", &labels, batch.compute_infer.count);
        }
    }
    page.family("mortise_run_seconds_total", "counter", "time that runs held device or plugin");
    for (labels, version) in rows.iter().flat_map(Row::by_version) {
        let total_ns: u64 = version.batches.iter().map(|batch| batch.compute_infer.total_ns).sum();
        page.line("mortise_run_seconds_total", &labels, total_ns as f64 / 1e9);
    }
}

/// What is read from a plugin's counts for one metric.
type Reading = fn(&PluginStats) -> u64;

const PLUGIN_METRICS: [(&str, &str, &str, Reading); 9] = [
    ("mortise_plugin_instances", "gauge", "warm instances", |s| s.instances as u64),
    ("mortise_plugin_instances_made_total", "counter", "instances made", |s| s.instances_made),
    ("mortise_plugin_calls_total", "counter", "calls that reached an instance", |s| s.calls),
    ("mortise_plugin_traps_total", "counter", "calls that ended in a trap", |s| s.traps),
    ("mortise_plugin_timeouts_total", "counter", "calls that ran out of time", |s| s.timeouts),
    ("mortise_plugin_refused_total", "counter", "calls without a free instance", |s| s.refused),
    ("mortise_plugin_cut_short_total", "counter", "calls made again on a plugin thread", |s| {
        s.cut_short
    }),
    ("mortise_plugin_quarantines_total", "counter", "quarantines", |s| s.quarantines),
    ("mortise_plugin_log_lines_dropped_total", "counter", "log lines dropped", |s| {
        s.log_lines_dropped
    }),
];

/// Counts of the custom plugins that are live; they start again at 0 with each
/// revision.
fn plugins(page: &mut Page, rows: &[Row]) {
    let live: Vec<(String, PluginStats)> = rows.iter().flat_map(Row::plugins).collect();
    for (name, kind, help, read) in PLUGIN_METRICS {
        page.family(name, kind, help);
        for (labels, stats) in &live {
            page.line(name, labels, read(stats));
        }
    }
    page.family("mortise_plugin_limits_hit_total", "counter", "limits hit by plugins");
    for (labels, stats) in &live {
        for (limit, count) in &stats.limits_hit {
            let labels = format!("{labels},limit=\"{limit}\"");
            page.line("mortise_plugin_limits_hit_total", &labels, count);
        }
    }
}

/// What is read from a variant's counts for one metric.
type VariantReading = fn(&VariantStatsSnapshot) -> u64;

const VARIANT_METRICS: [(&str, &str, VariantReading); 9] = [
    ("mortise_variant_requests_total", "requests that the router sent to a version", |s| {
        s.requests
    }),
    ("mortise_variant_errors_total", "requests that a version failed to answer", |s| s.errors),
    ("mortise_variant_fallbacks_total", "requests that another version answered instead", |s| {
        s.fallbacks
    }),
    ("mortise_variant_named_total", "requests that named a version", |s| s.named),
    ("mortise_variant_named_errors_total", "requests that named a version and failed", |s| {
        s.named_errors
    }),
    ("mortise_shadow_compared_total", "copies of requests that were compared", |s| {
        s.shadow.compared
    }),
    ("mortise_shadow_differing_total", "copies with another answer", |s| s.shadow.differing),
    ("mortise_shadow_failed_total", "copies that the version failed to answer", |s| {
        s.shadow.failed
    }),
    ("mortise_shadow_dropped_total", "copies that were not run", |s| s.shadow.dropped),
];

/// Counts of versions that share the traffic of an endpoint.
fn variants(page: &mut Page, rows: &[Row]) {
    let mut live = Vec::new();
    for row in rows {
        let lineup = row.endpoint.lineup();
        for variant in lineup.iter().flat_map(|lineup| lineup.variants()) {
            let version = variant.revision.version();
            let labels =
                format!("{},version=\"{version}\",variant=\"{}\"", row.labels(), variant.name);
            live.push((labels, variant.weight, variant.stats.snapshot()));
        }
    }
    page.family("mortise_variant_weight", "gauge", "share of the traffic, from 0 to 1");
    for (labels, weight, _) in &live {
        page.line("mortise_variant_weight", labels, f64::from(*weight) / f64::from(Variant::WHOLE));
    }
    for (name, help, read) in VARIANT_METRICS {
        page.family(name, "counter", help);
        for (labels, _, stats) in &live {
            page.line(name, labels, read(stats));
        }
    }
}

/// What is read from a router's counts for one metric.
type RoutingReading = fn(&RoutingSnapshot) -> u64;

const ROUTING_METRICS: [(&str, &str, RoutingReading); 3] = [
    ("mortise_router_undecided_total", "requests that a router failed on", |s| s.undecided),
    ("mortise_router_keyless_total", "requests without a sticky key", |s| s.keyless),
    ("mortise_router_outside_total", "requests that a router kept out of its experiment", |s| {
        s.outside
    }),
];

/// Counts of routers since their versions began to share the traffic.
fn routers(page: &mut Page, rows: &[Row]) {
    let counts = |row: &Row| {
        let lineup = row.endpoint.lineup()?;
        Some((row.labels(), lineup.routing()?.counts()))
    };
    let live: Vec<(String, RoutingSnapshot)> = rows.iter().filter_map(counts).collect();
    for (name, help, read) in ROUTING_METRICS {
        page.family(name, "counter", help);
        for (labels, counts) in &live {
            page.line(name, labels, read(counts));
        }
    }
}

/// What is read from a rollout for one metric.
type RolloutReading = fn(&RolloutStatus) -> f64;

const ROLLOUT_METRICS: [(&str, &str, RolloutReading); 4] = [
    ("mortise_rollout_weight", "share of the candidate, from 0 to 1", |s| s.weight_percent / 100.0),
    ("mortise_rollout_paused", "1 while an operator has paused it", |s| {
        f64::from(u8::from(s.phase == RolloutPhase::Paused))
    }),
    ("mortise_rollout_failing", "1 while it cannot be evaluated or a hook does not agree", |s| {
        f64::from(u8::from(s.error.is_some()))
    }),
    ("mortise_rollout_elapsed_seconds", "since it began, without pauses", |s| {
        s.elapsed_ms as f64 / 1e3
    }),
];

/// Rollouts that are under way.
fn rollouts(page: &mut Page, rollouts: &[RolloutStatus]) {
    let labels = |rollout: &RolloutStatus| {
        let (endpoint, version) = (&rollout.endpoint, rollout.candidate_version);
        format!("endpoint=\"{endpoint}\",version=\"{version}\"")
    };
    for (name, help, read) in ROLLOUT_METRICS {
        page.family(name, "gauge", help);
        for rollout in rollouts {
            page.line(name, &labels(rollout), read(rollout));
        }
    }
    let evidence: Vec<(String, &EvidenceInfo)> = rollouts
        .iter()
        .flat_map(|rollout| rollout.evidence.iter().map(move |it| (rollout, it)))
        .map(|(rollout, it)| (format!("{},test=\"{}\"", labels(rollout), escaped(&it.test)), it))
        .collect();
    page.family("mortise_rollout_odds", "gauge", "odds against the candidate by a test");
    for (labels, it) in &evidence {
        page.line("mortise_rollout_odds", labels, it.odds);
    }
    page.family("mortise_rollout_odds_limit", "gauge", "odds at which it is taken back");
    for (labels, it) in &evidence {
        page.line("mortise_rollout_odds_limit", labels, it.limit);
    }
}

/// The value of a label that a plugin chose.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl Row {
    /// Each version that answers now, with its labels.
    fn revisions(&self) -> Vec<(String, Arc<Revision>)> {
        let labelled = |revision: Arc<Revision>| {
            let labels = format!("{},version=\"{}\"", self.labels(), revision.version());
            (labels, revision)
        };
        self.endpoint.revisions().into_iter().map(labelled).collect()
    }

    /// The labels and counts of each custom plugin of each version.
    fn plugins(&self) -> Vec<(String, PluginStats)> {
        let mut plugins = Vec::new();
        for (labels, revision) in self.revisions() {
            for (index, stage) in revision.stages().iter().enumerate() {
                let labels = format!("{labels},stage=\"{index}\"");
                plugins.extend(stage.plugin_stats().map(|stats| (labels, stats)));
            }
        }
        plugins
    }

    /// The labels and counts of each version.
    fn by_version(&self) -> impl Iterator<Item = (String, &VersionStatsSnapshot)> {
        let labels = self.labels();
        self.versions.iter().map(move |v| (format!("{labels},version=\"{}\"", v.version), v))
    }

    /// Names of endpoints hold no character that would need escaping.
    fn labels(&self) -> String {
        format!("endpoint=\"{}\"", self.endpoint.name())
    }
}

/// Text in Prometheus' exposition format. Writing into a string cannot fail.
#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(self.0, "{name}{braces} {value}");
    }
}
