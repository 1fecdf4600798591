//! This server beside Triton, MLServer, LitServe and Ray Serve, on the same two
//! models, one server at a time: each has the machine to itself and the client.

mod clients;
pub(crate) mod servers;

use std::time::Duration;

use anyhow::Result;
use clients::{Client, Measured};
use serde_json::{Value, json};
use servers::Protocol;

use crate::report;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds that the light client measures each point.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Milliseconds of one window of perf_analyzer.
    #[arg(long, default_value_t = 700)]
    window_ms: u64,
    /// Only this server, by the name in the table.
    #[arg(long)]
    only: Option<String>,
}

/// What the clients are told.
pub(crate) struct Pace {
    pub(crate) light: Duration,
    pub(crate) window: Duration,
}

const CONCURRENCY: [usize; 3] = [1, 16, 64];
pub(crate) const MODELS: [Model; 2] = [Model::AddSub, Model::Digits];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Model {
    /// Sum and difference of two vectors of 16 floats.
    AddSub,
    /// The multi-layer perceptron on images of 64 numbers.
    Digits,
}

impl Model {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AddSub => "addsub",
            Self::Digits => "digits",
        }
    }
}

struct Point {
    server: &'static str,
    model: Model,
    client: &'static str,
    protocol: Protocol,
    concurrency: usize,
    outcome: Result<Measured>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let pace = Pace {
        light: Duration::from_secs_f64(args.seconds),
        window: Duration::from_millis(args.window_ms),
    };
    print_head();
    let mut points = Vec::new();
    for start in servers::ALL {
        if args.only.as_deref().is_some_and(|only| only != start.name) {
            continue;
        }
        for models in start.groups {
            points.extend(measure(start, models, &pace));
        }
    }
    print_result(&points);
    Ok(())
}

/// Starts a server, drives it in every way that it can be driven, and stops it.
fn measure(start: &servers::Start, models: &[Model], pace: &Pace) -> Vec<Point> {
    let peer = (start.start)(models);
    let mut points = Vec::new();
    for &model in models {
        for protocol in [Protocol::Http, Protocol::Grpc] {
            for client in [Client::Light, Client::PerfAnalyzer] {
                for concurrency in CONCURRENCY {
                    let outcome = match &peer {
                        Ok(peer) => {
                            clients::drive(peer, model, protocol, client, concurrency, pace)
                        }
                        Err(error) => Err(anyhow::anyhow!("{error:#}")),
                    };
                    let (server, client) = (start.name, client.name(protocol));
                    let point = Point { server, model, client, protocol, concurrency, outcome };
                    print_point(&point);
                    points.push(point);
                }
            }
        }
    }
    points
}

fn print_head() {
    println!(
        "{:<9} {:<7} {:<13} {:<5} {:>5} {:>9} {:>8} {:>8} {:>9} {:>7}",
        "server",
        "model",
        "client",
        "proto",
        "conns",
        "rps",
        "p50 us",
        "p99 us",
        "cpu us/r",
        "failed"
    );
}

fn print_point(point: &Point) {
    let Point { server, model, client, protocol, concurrency, outcome } = point;
    let (model, protocol) = (model.name(), protocol.name());
    let head = format!("{server:<9} {model:<7} {client:<13} {protocol:<5} {concurrency:>5}");
    match outcome {
        Ok(m) => println!(
            "{head} {:>9.0} {:>8.0} {:>8.0} {:>9.1} {:>7}",
            m.rps, m.p50_us, m.p99_us, m.server_cpu_us, m.failed
        ),
        Err(error) => println!("{head} {}", first_line(&format!("{error:#}"))),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn print_result(points: &[Point]) {
    let over_triton = |read: fn(&Measured) -> f64| {
        let at = |server| {
            let wanted = |point: &&Point| {
                point.server == server
                    && point.model == Model::AddSub
                    && point.client == "wrk"
                    && point.concurrency == 16
            };
            points.iter().find(wanted)?.outcome.as_ref().ok().map(read)
        };
        at("mortise").zip(at("triton")).map(|(ours, theirs)| ours / theirs.max(1e-9))
    };
    let result = json!({
        "points": points.iter().map(Point::json).collect::<Vec<_>>(),
        "throughput_ratio_triton_16": over_triton(|m| m.rps),
        "cpu_ratio_triton_16": over_triton(|m| m.server_cpu_us),
        "p99_ratio_triton_16": over_triton(|m| m.p99_us),
        "behind_at": behind(points),
    });
    let versions = json!({"mortise": report::our_version(), "peers": servers::versions()});
    report::print(result, versions);
}

/// Every point at which a peer had more requests a second than we had.
fn behind(points: &[Point]) -> Vec<Value> {
    let ours = |other: &Point| {
        let same = |point: &&Point| {
            point.server == "mortise"
                && (point.model, point.client, point.protocol, point.concurrency)
                    == (other.model, other.client, other.protocol, other.concurrency)
        };
        points.iter().find(same)?.outcome.as_ref().ok().map(|m| m.rps)
    };
    let faster = points.iter().filter(|point| {
        let theirs = point.outcome.as_ref().ok().map(|m| m.rps);
        theirs.zip(ours(point)).is_some_and(|(theirs, ours)| theirs > ours)
    });
    faster.map(Point::json).collect()
}

impl Point {
    fn json(&self) -> Value {
        let mut value = json!({
            "server": self.server, "model": self.model.name(), "client": self.client,
            "protocol": self.protocol.name(), "concurrency": self.concurrency,
            "rps": null, "p50_us": null, "p99_us": null, "server_cpu_us": null, "failed": null,
        });
        match &self.outcome {
            Ok(m) => {
                value["rps"] = m.rps.into();
                value["p50_us"] = m.p50_us.into();
                value["p99_us"] = m.p99_us.into();
                value["server_cpu_us"] = m.server_cpu_us.into();
                value["failed"] = m.failed.into();
            }
            Err(error) => value["reason"] = format!("{error:#}").into(),
        }
        value
    }
}

/// What a peer is asked over HTTP, and where.
pub(crate) struct HttpTarget {
    pub(crate) path: String,
    pub(crate) body: Vec<u8>,
}

/// The request of the protocol that all but LitServe and Ray Serve speak.
pub(crate) fn protocol_request(model: Model) -> HttpTarget {
    let tensor = |name: &str, values: &[f32]| json!({"name": name, "datatype": "FP32", "shape": [1, values.len()], "data": values});
    let inputs: Vec<Value> =
        model_inputs(model).iter().map(|(name, values)| tensor(name, values)).collect();
    HttpTarget {
        path: mortise_tests::infer::path(model.name()),
        body: json!({"inputs": inputs}).to_string().into_bytes(),
    }
}

/// One row for each input.
pub(crate) fn model_inputs(model: Model) -> Vec<(&'static str, Vec<f32>)> {
    match model {
        Model::AddSub => vec![("INPUT0", vec![1.0; 16]), ("INPUT1", vec![0.5; 16])],
        Model::Digits => {
            vec![("pixels", (0..64).map(|index| ((index * 7) % 17) as f32).collect())]
        }
    }
}

/// The bodies of servers with a format of their own.
pub(crate) fn plain_request(model: Model, path: String) -> HttpTarget {
    let body = match model {
        Model::AddSub => json!({"a": [vec![1.0; 16]], "b": [vec![0.5; 16]]}),
        Model::Digits => json!({"x": [model_inputs(model)[0].1]}),
    };
    HttpTarget { path, body: body.to_string().into_bytes() }
}
