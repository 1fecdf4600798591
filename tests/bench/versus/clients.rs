//! The load: wrk and h2load with a fixed request, which cost little, and the
//! real perf_analyzer.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mortise_tests::stats::percentile;
use mortise_tests::{grpc, onnx::Message};

use super::servers::{Peer, Protocol, folder, program};
use super::{HttpTarget, Model, Pace, model_inputs};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    Light,
    PerfAnalyzer,
}

impl Client {
    pub(crate) fn name(self, protocol: Protocol) -> &'static str {
        match (self, protocol) {
            (Self::PerfAnalyzer, _) => "perf_analyzer",
            (Self::Light, Protocol::Http) => "wrk",
            (Self::Light, Protocol::Grpc) => "h2load",
        }
    }
}

/// One point.
pub(crate) struct Measured {
    pub(crate) rps: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// CPU time of the server and its workers for each request.
    pub(crate) server_cpu_us: f64,
    pub(crate) failed: u64,
}

/// Drives a server in one way.
///
/// # Errors
/// When the server does not speak the protocol, or the client cannot be used.
pub(crate) fn drive(
    peer: &Peer,
    model: Model,
    protocol: Protocol,
    client: Client,
    concurrency: usize,
    pace: &Pace,
) -> Result<Measured> {
    ensure!(
        peer.is_protocol || (protocol, client) == (Protocol::Http, Client::Light),
        "it does not speak the protocol that this client needs"
    );
    match (client, protocol) {
        (Client::Light, Protocol::Http) => wrk(peer, &(peer.target)(model), concurrency, pace),
        (Client::Light, Protocol::Grpc) => h2load(peer, model, concurrency, pace),
        (Client::PerfAnalyzer, _) => perf_analyzer(peer, model, protocol, concurrency, pace),
    }
}

/// Runs a client, and returns what it printed and the CPU time that the server
/// took meanwhile.
fn run(peer: &Peer, command: &mut Command) -> Result<(String, Duration)> {
    let before = peer.cpu()?;
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    let used = peer.cpu()?.saturating_sub(before);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok((text, used));
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let said = errors.lines().chain(text.lines()).find(|line| !line.trim().is_empty());
    bail!("{name} failed: {}", said.unwrap_or("no message"))
}

/// Prints what wrk measured as numbers, instead of rounded text.
const WRK_SCRIPT: &str = r#"
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local file = io.open(os.getenv("MORTISE_BENCH_BODY"), "rb")
wrk.body = file:read("*a")
file:close()
function done(summary, latency, requests)
  local e = summary.errors
  print(string.format("RESULT %d %d %d %d %d", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"#;

fn wrk(peer: &Peer, target: &HttpTarget, concurrency: usize, pace: &Pace) -> Result<Measured> {
    let work = tempfile::tempdir()?;
    let (script, body) = (work.path().join("script.lua"), work.path().join("body"));
    fs::write(&script, WRK_SCRIPT)?;
    fs::write(&body, &target.body)?;
    let url = format!("http://{}{}", peer.http, target.path);
    let command = |seconds: f64| {
        let mut command = Command::new("wrk");
        command
            .args(["-t1", &format!("-c{concurrency}"), &format!("-d{}s", seconds.ceil())])
            .arg("-s")
            .arg(&script)
            .arg(&url)
            .env("MORTISE_BENCH_BODY", &body);
        command
    };
    let (text, cpu) = run(peer, &mut command(pace.light.as_secs_f64()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("RESULT "));
    let line = line.context("wrk printed no result")?;
    let numbers: Vec<f64> = line.split(' ').filter_map(|number| number.parse().ok()).collect();
    let [requests, duration_us, p50_us, p99_us, failed] = numbers[..] else {
        bail!("wrk printed {line:?}");
    };
    Ok(Measured {
        rps: (requests - failed).max(0.0) / (duration_us / 1e6),
        p50_us,
        p99_us,
        server_cpu_us: cpu.as_secs_f64() * 1e6 / requests.max(1.0),
        failed: failed as u64,
    })
}

/// A framed `ModelInferRequest`.
fn grpc_request(model: Model) -> Vec<u8> {
    let mut request = Message::default().text(1, model.name());
    let inputs = model_inputs(model);
    for (name, values) in &inputs {
        let shape = Message::default().int(3, 1).int(3, values.len() as u64);
        let tensor = Message::default().text(1, name).text(2, "FP32").append(&shape);
        request = request.message(5, &tensor);
    }
    for (_, values) in &inputs {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        request = request.bytes(7, &bytes);
    }
    grpc::frame(request.as_bytes())
}

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// h2load sees no `grpc-status`, but a failed call has no message: the bytes of
/// data tell how many calls had one of the length that a checked call had.
fn h2load(peer: &Peer, model: Model, concurrency: usize, pace: &Pace) -> Result<Measured> {
    let address = peer.grpc.context("it speaks no gRPC of the protocol")?;
    let request = grpc_request(model);
    let reply_bytes = grpc::call(address, INFER, &request).context("the checked call")?.len();
    let work = tempfile::tempdir()?;
    let (body, log) = (work.path().join("body"), work.path().join("log"));
    fs::write(&body, &request)?;
    let mut command = Command::new("h2load");
    command
        .args(["-t1", "-m1", &format!("-c{concurrency}")])
        .args(["-D", &pace.light.as_secs_f64().ceil().to_string()])
        .args(["-H", "content-type: application/grpc", "-H", "te: trailers"])
        .arg("-d")
        .arg(&body)
        .arg(format!("--log-file={}", log.display()))
        .arg(format!("http://{address}{INFER}"));
    let (text, cpu) = run(peer, &mut command)?;
    let (mut latencies, seconds) = h2load_log(&log)?;
    let answered = data_bytes(&text)? / reply_bytes.max(1) as u64;
    let total = latencies.len() as u64;
    Ok(Measured {
        rps: answered.min(total) as f64 / seconds,
        p50_us: percentile(&mut latencies, 0.5).into(),
        p99_us: percentile(&mut latencies, 0.99).into(),
        server_cpu_us: cpu.as_secs_f64() * 1e6 / total.max(1) as f64,
        failed: total.saturating_sub(answered),
    })
}

/// Latencies in microseconds, and the time from the first request to the last,
/// in seconds. A line holds start, status and latency.
fn h2load_log(log: &Path) -> Result<(Vec<u32>, f64)> {
    let text = fs::read_to_string(log)?;
    let (mut latencies, mut first, mut last) = (Vec::new(), u64::MAX, 0);
    for line in text.lines() {
        let fields: Vec<u64> = line.split('\t').filter_map(|field| field.parse().ok()).collect();
        let [start_us, _status, latency_us] = fields[..] else { continue };
        first = first.min(start_us);
        last = last.max(start_us + latency_us);
        latencies.push(u32::try_from(latency_us).unwrap_or(u32::MAX));
    }
    ensure!(!latencies.is_empty(), "h2load answered nothing");
    Ok((latencies, last.saturating_sub(first).max(1) as f64 / 1e6))
}

/// From `traffic: 1.2MB (1234567) total, … (890) data`.
fn data_bytes(text: &str) -> Result<u64> {
    let line = text.lines().find(|line| line.starts_with("traffic:"));
    let before = line.and_then(|line| line.strip_suffix(") data"));
    let number = before.and_then(|line| line.rsplit_once('(')).map(|(_, number)| number);
    number.and_then(|number| number.parse().ok()).context("h2load told no traffic")
}

fn perf_analyzer(
    peer: &Peer,
    model: Model,
    protocol: Protocol,
    concurrency: usize,
    pace: &Pace,
) -> Result<Measured> {
    let address = match protocol {
        Protocol::Http => peer.http,
        Protocol::Grpc => peer.grpc.context("it speaks no gRPC of the protocol")?,
    };
    let work = tempfile::tempdir()?;
    let table = work.path().join("table.csv");
    let mut command = Command::new(program("perf", "perf_analyzer")?);
    command
        .env("LD_LIBRARY_PATH", cuda_runtime()?)
        .args(["-m", model.name(), "-i", protocol.name(), "-u", &address.to_string()])
        .args(["--concurrency-range", &concurrency.to_string()])
        // Any spread counts as stable: three short windows are what there is time for.
        .args(["-p", &pace.window.as_millis().to_string(), "-r", "3", "-s", "900"])
        .args(["--percentile", "99", "-f"])
        .arg(&table);
    if peer.tells_batch {
        for (name, values) in model_inputs(model) {
            command.args(["--shape", &format!("{name}:1,{}", values.len())]);
        }
    }
    let started = Instant::now();
    let (_, cpu) = run(peer, &mut command)?;
    let elapsed = started.elapsed();
    read_table(&fs::read_to_string(&table)?, cpu, elapsed)
}

/// perf_analyzer gives up when a request fails, so that none of a run that has
/// a table did. The CPU time is of the whole run, at about the rate it tells.
fn read_table(text: &str, cpu: Duration, elapsed: Duration) -> Result<Measured> {
    let mut lines = text.lines();
    let head: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let row: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let column = |name: &str| -> Result<f64> {
        let index = head.iter().position(|head| head.trim() == name);
        let value =
            index.and_then(|index| row.get(index)).and_then(|text| text.trim().parse().ok());
        value.with_context(|| format!("perf_analyzer's table has no {name}"))
    };
    let rps = column("Inferences/Second")?;
    Ok(Measured {
        rps,
        p50_us: column("p50 latency")?,
        p99_us: column("p99 latency")?,
        server_cpu_us: cpu.as_secs_f64() * 1e6 / (rps * elapsed.as_secs_f64()).max(1.0),
        failed: 0,
    })
}

/// The folder of the library that perf_analyzer is linked with.
fn cuda_runtime() -> Result<std::path::PathBuf> {
    let lib = folder()?.join("perf/lib");
    for python in fs::read_dir(&lib).with_context(|| format!("read {}", lib.display()))? {
        let found = python?.path().join("site-packages/nvidia/cuda_runtime/lib");
        if found.is_dir() {
            return Ok(found);
        }
    }
    bail!("nvidia-cuda-runtime-cu12 is not installed beside perf_analyzer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_clients_print_is_read() {
        let text = "finished\ntraffic: 1.2MB (1258291) total, 3KB (3072) headers (space savings \
                    90.00%), 2.5KB (2560) data\n";
        assert_eq!(data_bytes(text).unwrap(), 2560);
        let table = "Concurrency,Inferences/Second,p50 latency,p99 latency\n16,1000.5,120,400\n";
        let read = read_table(table, Duration::from_secs(1), Duration::from_secs(2)).unwrap();
        assert_eq!((read.rps, read.p50_us, read.p99_us), (1000.5, 120.0, 400.0));
        assert!((read.server_cpu_us - 499.75).abs() < 0.01);
    }
}
