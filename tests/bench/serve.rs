//! Requests per second of the digits endpoint, beside peers on the same model,
//! and of the health check, beside a bare hyper server. All take turns in short
//! slices, so that a change of the machine's mood meets each of them.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mortise_tests::load::{Load, Outcome, status_200};
use mortise_tests::{Client, Deployment, Server, http1, infer, paths, stats};
use serde_json::{Value, json};

use crate::peers::{self, Peer};
use crate::report;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Slices of each measurement; the medians are reported.
    #[arg(long, default_value_t = 5)]
    slices: usize,
    /// Seconds of one slice.
    #[arg(long, default_value_t = 2.0)]
    slice_seconds: f64,
}

const CONNECTIONS: [usize; 2] = [1, 16];

pub(crate) fn run(args: &Args) -> Result<()> {
    let server = Server::start()?;
    let model = paths::demo("digits/model.onnx");
    let bytes = std::fs::read(&model).with_context(|| format!("read {}", model.display()))?;
    server.admin()?.deploy("digits", &Deployment::onnx(bytes))?;
    let input = input_name(&server)?;
    let row = digit_row();
    let floor = Floor::start()?;
    let peers = peers::start_all(&model, &row);
    let mut targets = our_targets(&server, &input, &row);
    targets.push(Target::new("bare hyper", "", floor.address, health_request()));
    targets.extend(peers.iter().filter_map(|(_, peer)| peer.as_ref().ok()).map(Target::of_peer));
    let rows = measure(args, &targets)?;
    print(&rows, &peers, overhead_us(&server)?);
    Ok(())
}

/// The median of what the server itself takes for a request, from the received
/// body to the encoded reply, without waiting and running: from its own
/// histogram over all requests, within a bucket by interpolation.
fn overhead_us(server: &Server) -> Result<f64> {
    let page = Client::new(server.metrics).get("/metrics")?.ok()?.text_whole();
    median_of_buckets(&page, "mortise_http_overhead_seconds_bucket").map(|seconds| seconds * 1e6)
}

fn median_of_buckets(page: &str, name: &str) -> Result<f64> {
    let bucket = |line: &str| -> Option<(f64, f64)> {
        let (bound, count) = line.strip_prefix(name)?.strip_prefix("{le=\"")?.split_once("\"} ")?;
        Some((bound.parse().ok()?, count.parse().ok()?))
    };
    // "+Inf" is a number too, and comes last.
    let buckets: Vec<(f64, f64)> = page.lines().filter_map(bucket).collect();
    let (_, total) = buckets.last().with_context(|| format!("no {name} in the metrics"))?;
    let (mut below, mut before) = (0.0, 0.0);
    for &(bound, count) in &buckets {
        if count >= total / 2.0 {
            let share = (total / 2.0 - before) / (count - before).max(1.0);
            return Ok(below + (bound - below) * share);
        }
        (below, before) = (bound, count);
    }
    bail!("{name} has counted nothing")
}

/// A plausible digit: the rows of the data set hold 0 to 16.
fn digit_row() -> Vec<f32> {
    (0..64).map(|index| ((index * 7) % 17) as f32).collect()
}

fn input_name(server: &Server) -> Result<String> {
    let metadata = server.client().get("/v2/models/digits")?.ok()?.json()?;
    let name = metadata["inputs"][0]["name"].as_str();
    Ok(name.context("the digits model has no input")?.to_owned())
}

struct Target {
    name: &'static str,
    encoding: &'static str,
    address: SocketAddr,
    request: Vec<u8>,
}

impl Target {
    fn new(
        name: &'static str,
        encoding: &'static str,
        address: SocketAddr,
        request: Vec<u8>,
    ) -> Self {
        Self { name, encoding, address, request }
    }

    fn of_peer(peer: &Peer) -> Self {
        Self::new(peer.name, "json", peer.address, peer.request.clone())
    }
}

fn health_request() -> Vec<u8> {
    http1::request("GET", "/v2/health/live", &[], b"")
}

fn our_targets(server: &Server, input: &str, row: &[f32]) -> Vec<Target> {
    let path = infer::path("digits");
    let json = infer::json_fp32(input, 64, row);
    let json = http1::request("POST", &path, &[("content-type", "application/json")], &json);
    let (body, header_bytes) = infer::binary_fp32(input, 64, row);
    let length = header_bytes.to_string();
    let headers = [("inference-header-content-length", length.as_str())];
    let binary = http1::request("POST", &path, &headers, &body);
    vec![
        Target::new("digits", "json", server.http, json),
        Target::new("digits", "binary", server.http, binary),
        Target::new("health", "", server.http, health_request()),
    ]
}

struct Row {
    name: &'static str,
    encoding: &'static str,
    connections: usize,
    rps: f64,
    p50_us: f64,
    p99_us: f64,
    failed: usize,
}

fn measure(args: &Args, targets: &[Target]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for connections in CONNECTIONS {
        let mut outcomes: Vec<Vec<Outcome>> = targets.iter().map(|_| Vec::new()).collect();
        // The first round warms everything up and is not counted.
        for slice in 0..=args.slices {
            for (target, outcomes) in targets.iter().zip(&mut outcomes) {
                let load = Load {
                    address: target.address,
                    connections,
                    requests: Arc::new(vec![target.request.clone()]),
                    check: status_200(),
                };
                let outcome = load
                    .run(Duration::from_secs_f64(args.slice_seconds))
                    .with_context(|| format!("load on {}", target.name))?;
                if slice > 0 {
                    outcomes.push(outcome);
                }
            }
        }
        rows.extend(targets.iter().zip(&outcomes).map(|(target, outcomes)| {
            let median = |value: &dyn Fn(&Outcome) -> f64| {
                stats::median(outcomes.iter().map(value).collect())
            };
            Row {
                name: target.name,
                encoding: target.encoding,
                connections,
                rps: median(&Outcome::rps),
                p50_us: median(&|outcome| f64::from(outcome.latency_us(0.5))),
                p99_us: median(&|outcome| f64::from(outcome.latency_us(0.99))),
                failed: outcomes.iter().map(|outcome| outcome.failed).sum(),
            }
        }));
    }
    Ok(rows)
}

fn print(rows: &[Row], peers: &[(&'static str, Result<Peer>)], overhead_us: f64) {
    let columns = ("server", "body", "conns", "requests/s", "p50 us", "p99 us", "failed");
    let (server, body, conns, rate, p50, p99, failed) = columns;
    println!("{server:<11} {body:<7} {conns:>5} {rate:>11} {p50:>8} {p99:>8} {failed:>6}");
    for row in rows {
        let Row { name, encoding, connections, rps, p50_us, p99_us, failed } = row;
        println!(
            "{name:<11} {encoding:<7} {connections:>5} {rps:>11.0} {p50_us:>8.0} {p99_us:>8.0} \
             {failed:>6}"
        );
    }
    println!("overhead of the server without queue and model: {overhead_us:.1} us (median)");
    let at_16 = |name: &str, encoding: &str| {
        let matches =
            |row: &&Row| row.name == name && row.encoding == encoding && row.connections == 16;
        rows.iter().find(matches).map(|row| row.rps)
    };
    let ratio = |over: Option<f64>, under: Option<f64>| {
        over.zip(under).map(|(over, under)| over / under.max(1e-9))
    };
    let json_digits = at_16("digits", "json");
    let result = json!({
        "health_rps": at_16("health", ""),
        "overhead_p50_us": overhead_us,
        "bare_hyper_rps": at_16("bare hyper", ""),
        "digits": rows.iter().filter(|row| row.name == "digits").map(ours).collect::<Vec<_>>(),
        "peers": peers.iter().flat_map(|peer| peer_rows(peer, rows)).collect::<Vec<_>>(),
        "ratio_litserve_16": ratio(json_digits, at_16("litserve", "json")),
        "ratio_fastapi_16": ratio(json_digits, at_16("fastapi", "json")),
        "ratio_health_16": ratio(at_16("health", ""), at_16("bare hyper", "")),
        "ratio_digits_health_16": ratio(at_16("digits", "binary"), at_16("health", "")),
    });
    report::print(result, json!({"mortise": report::our_version(), "peers": peers::versions()}));
}

fn ours(row: &Row) -> Value {
    json!({
        "protocol": "http", "encoding": row.encoding, "connections": row.connections,
        "rps": row.rps, "p50_us": row.p50_us, "p99_us": row.p99_us, "failed": row.failed,
    })
}

fn peer_rows((name, peer): &(&'static str, Result<Peer>), rows: &[Row]) -> Vec<Value> {
    if let Err(error) = peer {
        return vec![json!({
            "name": name, "connections": null, "rps": null, "p50_us": null, "p99_us": null,
            "reason": format!("{error:#}"),
        })];
    }
    let of_peer = rows.iter().filter(|row| row.name == *name);
    let value = |row: &Row| {
        json!({
            "name": name, "connections": row.connections, "rps": row.rps,
            "p50_us": row.p50_us, "p99_us": row.p99_us, "failed": row.failed,
        })
    };
    of_peer.map(value).collect()
}

/// The bare hyper server, in a process of its own as ours is.
struct Floor {
    child: Child,
    address: SocketAddr,
}

impl Floor {
    fn start() -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("floor")
            .stdout(Stdio::piped())
            .spawn()
            .context("start the bare hyper server")?;
        let stdout = child.stdout.take().context("standard output was asked for")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        Ok(Self { child, address: line.trim().parse().context("the address of the floor")? })
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // Either it has ended already or this ends it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_found_within_buckets() {
        let page = "# TYPE t_bucket histogram\nt_bucket{le=\"0.00001\"} 10\n\
                    t_bucket{le=\"0.00002\"} 90\nt_bucket{le=\"+Inf\"} 100\nt_count 100\n";
        let median = median_of_buckets(page, "t_bucket").unwrap();
        assert!((median - 0.000_015).abs() < 1e-9, "{median}");
        assert!(median_of_buckets(page, "u_bucket").is_err());
    }
}
