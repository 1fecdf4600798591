//! What merging requests gains: one perceptron deployed twice, with batching as
//! it is by default and switched off. Both take turns in short slices. Every
//! answer is compared with what the request gets alone.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use mortise_tests::load::{Check, Load, Outcome, Verdict};
use mortise_tests::{Deployment, Server, http1, infer, onnx, stats};
use serde_json::json;

use crate::report;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Slices of each measurement; the medians are reported.
    #[arg(long, default_value_t = 5)]
    slices: usize,
    /// Seconds of one slice.
    #[arg(long, default_value_t = 2.0)]
    slice_seconds: f64,
    /// Layers of the perceptron.
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// Width of its layers.
    #[arg(long, default_value_t = 1_024)]
    width: usize,
}

/// Requests with inputs of their own.
const REQUESTS: usize = 32;

const CONNECTIONS: [usize; 2] = [1, 64];

const MODES: [&str; 2] = ["unbatched", "batched"];

pub(crate) fn run(args: &Args) -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    let model = onnx::perceptron(args.layers, args.width);
    let off = json!({"batching": {"enabled": false}});
    admin.deploy(MODES[0], &Deployment::onnx(model.clone()).serving(off))?;
    let deployed = admin.deploy(MODES[1], &Deployment::onnx(model))?;
    ensure!(deployed["merging"]["state"] == "on", "merging is off: {}", deployed["merging"]);
    let bodies = bodies(args.width);
    let expected = Arc::new(expected(&server, &bodies)?);
    let mut rows = Vec::new();
    for connections in CONNECTIONS {
        rows.push(measure(args, &server, &bodies, &expected, connections)?);
    }
    print(args, &rows)
}

type Body = (Vec<u8>, usize);

fn bodies(width: usize) -> Vec<Body> {
    let mut random = fastrand::Rng::with_seed(5);
    let mut row = || -> Vec<f32> { (0..width).map(|_| random.f32() * 2.0 - 1.0).collect() };
    (0..REQUESTS).map(|_| infer::binary_fp32("x", width, &row())).collect()
}

fn request(endpoint: &str, (body, header_bytes): &Body) -> Vec<u8> {
    let length = header_bytes.to_string();
    let headers = [("inference-header-content-length", length.as_str())];
    http1::request("POST", &infer::path(endpoint), &headers, body)
}

/// The first numbers of each answer, as the request gets them alone.
fn expected(server: &Server, bodies: &[Body]) -> Result<Vec<Vec<f32>>> {
    let mut client = server.client();
    let ask = |body: &Body| {
        let length = body.1.to_string();
        let headers = [("inference-header-content-length", length.as_str())];
        let answer = client.send("POST", &infer::path(MODES[0]), &headers, &body.0)?.ok()?;
        Ok(tail(&answer.body))
    };
    bodies.iter().map(ask).collect()
}

/// The last numbers of a binary answer.
fn tail(body: &[u8]) -> Vec<f32> {
    const NUMBERS: usize = 8;
    let bytes = &body[body.len().saturating_sub(NUMBERS * 4)..];
    bytes
        .chunks_exact(4)
        .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
        .collect()
}

fn check(expected: &Arc<Vec<Vec<f32>>>) -> Check {
    let expected = expected.clone();
    Arc::new(move |request, status, body| {
        if status != 200 {
            return Verdict::Failed;
        }
        let want = &expected[request];
        let fits = |(got, want): (&f32, &f32)| (got - want).abs() <= 1e-3 * want.abs().max(1.0);
        match tail(body).iter().zip(want).all(fits) {
            true => Verdict::Right,
            false => Verdict::Wrong,
        }
    })
}

struct Row {
    connections: usize,
    /// By mode.
    rps: [f64; 2],
    p50_us: [f64; 2],
    p99_us: [f64; 2],
}

fn measure(
    args: &Args,
    server: &Server,
    bodies: &[Body],
    expected: &Arc<Vec<Vec<f32>>>,
    connections: usize,
) -> Result<Row> {
    let mut outcomes: [Vec<Outcome>; 2] = Default::default();
    // The first round warms everything up and is not counted.
    for slice in 0..=args.slices {
        for (mode, outcomes) in MODES.iter().zip(&mut outcomes) {
            let requests = bodies.iter().map(|body| request(mode, body)).collect();
            let load = Load {
                address: server.http,
                connections,
                requests: Arc::new(requests),
                check: check(expected),
            };
            let outcome = load.run(Duration::from_secs_f64(args.slice_seconds))?;
            ensure!(
                outcome.failed + outcome.wrong == 0,
                "{mode}: {} failed, {} wrong",
                outcome.failed,
                outcome.wrong
            );
            if slice > 0 {
                outcomes.push(outcome);
            }
        }
    }
    let median = |value: &dyn Fn(&Outcome) -> f64| {
        [0, 1].map(|mode: usize| stats::median(outcomes[mode].iter().map(value).collect()))
    };
    Ok(Row {
        connections,
        rps: median(&Outcome::rps),
        p50_us: median(&|outcome| f64::from(outcome.latency_us(0.5))),
        p99_us: median(&|outcome| f64::from(outcome.latency_us(0.99))),
    })
}

fn print(args: &Args, rows: &[Row]) -> Result<()> {
    println!("{:<10} {:>11} {:>9} {:>9} {:>9}", "", "connections", "rps", "p50 us", "p99 us");
    for row in rows {
        for (mode, name) in MODES.iter().enumerate() {
            println!(
                "{name:<10} {:>11} {:>9.0} {:>9.0} {:>9.0}",
                row.connections, row.rps[mode], row.p50_us[mode], row.p99_us[mode]
            );
        }
    }
    let [single, many] = rows else { anyhow::bail!("two rows were measured") };
    let result = json!({
        "unbatched_rps_64": many.rps[0], "batched_rps_64": many.rps[1],
        "speedup_64": many.rps[1] / many.rps[0].max(1e-9),
        "p50_ratio_1": single.p50_us[1] / single.p50_us[0].max(1.0),
        "unbatched_p99_us_64": many.p99_us[0], "batched_p99_us_64": many.p99_us[1],
        "unbatched_p50_us_1": single.p50_us[0], "batched_p50_us_1": single.p50_us[1],
        "layers": args.layers, "width": args.width,
    });
    report::print(result, json!({"mortise": report::our_version()}));
    Ok(())
}
