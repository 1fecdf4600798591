//! The counters that dashboards made for Triton read, under its names and
//! labels. Times are in microseconds, as there.

use super::{Page, Row};
use mortise_serve::{DurationCount, VersionStatsSnapshot};
use mortise_types::ErrorKind;

/// What is read from a version's statistics for one metric.
type Reading = fn(&VersionStatsSnapshot) -> u64;

const COUNTERS: [(&str, &str, Reading); 12] = [
    ("nv_inference_request_success", "answered requests", |v| v.success.count),
    ("nv_inference_count", "rows answered", |v| v.inference_count),
    ("nv_inference_exec_count", "runs of the model", |v| v.execution_count),
    ("nv_inference_request_duration_us", "time of answered requests", |v| us(v.success)),
    ("nv_inference_queue_duration_us", "time that requests waited", |v| us(v.queue)),
    ("nv_inference_compute_input_duration_us", "putting inputs together", |v| us(v.compute_input)),
    ("nv_inference_compute_infer_duration_us", "running the model", |v| us(v.compute_infer)),
    ("nv_inference_compute_output_duration_us", "taking outputs apart", |v| us(v.compute_output)),
    ("nv_cache_num_hits_per_model", "requests answered from the cache", |v| v.cache_hit.count),
    ("nv_cache_num_misses_per_model", "requests not in the cache", |v| v.cache_miss.count),
    ("nv_cache_hit_duration_per_model", "time of look-ups that hit", |v| us(v.cache_hit)),
    ("nv_cache_miss_duration_per_model", "look-ups that missed, and insertions", |v| {
        us(v.cache_miss)
    }),
];

fn us(duration: DurationCount) -> u64 {
    duration.total_ns / 1_000
}

/// Triton's reasons for failures, and the kinds of ours that they stand for;
/// what has no line is `OTHER`.
const REASONS: [(&str, &[ErrorKind]); 2] = [
    ("REJECTED", &[ErrorKind::Overloaded, ErrorKind::RateLimited, ErrorKind::NotReady]),
    ("BACKEND", &[ErrorKind::PluginFailed, ErrorKind::LimitExceeded, ErrorKind::Internal]),
];

pub(super) fn render(page: &mut Page, rows: &[Row]) {
    for (name, help, read) in COUNTERS {
        page.family(name, "counter", help);
        for (labels, version) in rows.iter().flat_map(labelled) {
            page.line(name, &labels, read(version));
        }
    }
    page.family("nv_inference_request_failure", "counter", "failed requests by reason");
    rows.iter().for_each(|row| failures(page, row));
    page.family("nv_inference_pending_request_count", "gauge", "requests waiting");
    for (labels, version) in rows.iter().flat_map(labelled) {
        page.line("nv_inference_pending_request_count", &labels, version.queued_requests);
    }
}

fn labelled(row: &Row) -> impl Iterator<Item = (String, &VersionStatsSnapshot)> {
    let name = row.endpoint.name();
    row.versions.iter().map(move |v| (format!("model=\"{name}\",version=\"{}\"", v.version), v))
}

/// Requests fail before they have a version, too: all count for the live one.
fn failures(page: &mut Page, row: &Row) {
    let latest = || row.versions.last().map(|stats| stats.version);
    let live = row.endpoint.live().map(|revision| revision.version());
    let Some(version) = live.or_else(latest) else { return };
    let of_reason = |kinds: &[ErrorKind]| -> u64 {
        let failures = row.stats.failures.iter();
        failures.filter(|(kind, _)| kinds.contains(kind)).map(|(_, count)| count).sum()
    };
    let named = REASONS.map(|(reason, kinds)| (reason, of_reason(kinds)));
    let all: u64 = row.stats.failures.iter().map(|(_, count)| count).sum();
    let other = all - named.iter().map(|(_, count)| count).sum::<u64>();
    let rest = [("CANCELED", row.stats.cancelled), ("OTHER", other)];
    for (reason, count) in named.into_iter().chain(rest) {
        let name = row.endpoint.name();
        let labels = format!("model=\"{name}\",version=\"{version}\",reason=\"{reason}\"");
        page.line("nv_inference_request_failure", &labels, count);
    }
}
