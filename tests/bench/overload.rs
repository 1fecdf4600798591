//! Three times what a model can do, offered open-loop: how much of the capacity
//! still becomes answers in time, how fast the rest is refused, what memory it
//! takes, and how soon all is well again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mortise_tests::load::{Load, status_200};
use mortise_tests::open_loop::{Answer, Offered, OpenLoop};
use mortise_tests::{Deployment, Options, Server, http1, infer, onnx, stats, wait};
use serde_json::{Value, json};

use crate::report;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds of overload.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Times the capacity that are offered.
    #[arg(long, default_value_t = 3.0)]
    factor: f64,
    /// Deadline of every request, milliseconds.
    #[arg(long, default_value_t = 100)]
    deadline_ms: u64,
    /// Layers of the model; 8 of width 1,024 compute for some milliseconds.
    #[arg(long, default_value_t = 8)]
    layers: usize,
    /// Seconds over which the capacity is measured.
    #[arg(long, default_value_t = 5.0)]
    capacity_seconds: f64,
}

const ENDPOINT: &str = "heavy";
const WIDTH: usize = 1_024;

/// Enough to keep the model busy, few enough to meet every deadline.
const CAPACITY_CONNECTIONS: usize = 6;

pub(crate) fn run(args: &Args) -> Result<()> {
    let config = format!("[http]\nrequest_timeout_ms = {}\n", args.deadline_ms);
    let server = Server::start_with(Options { config, ..Options::default() })?;
    server.admin()?.deploy(ENDPOINT, &Deployment::onnx(onnx::heavy(args.layers, WIDTH)))?;
    let single_us = single(&server)?;
    ensure!(single_us >= 5_000.0, "the model takes only {single_us} us: give it more layers");
    let capacity = capacity(args, &server)?;
    let rss_before = server.rss_bytes()?;
    let watch = RssWatch::start(&server);
    let cpu_before = own_cpu();
    let offered = OpenLoop {
        address: server.http,
        requests: Arc::new(requests()),
        per_second: capacity * args.factor,
        duration: Duration::from_secs_f64(args.seconds),
        max_connections: 1_024,
    }
    .run()?;
    let generator_cpu = (own_cpu() - cpu_before).as_secs_f64() / offered.elapsed.as_secs_f64();
    let recovery = recovery(&server, single_us)?;
    let rss_peak = watch.finish();
    print(
        args,
        &Measured { single_us, capacity, offered, generator_cpu, recovery, rss_before, rss_peak },
    )
}

struct Measured {
    single_us: f64,
    capacity: f64,
    offered: Offered,
    /// Cores that the generator used itself.
    generator_cpu: f64,
    recovery: Duration,
    rss_before: u64,
    rss_peak: u64,
}

fn requests() -> Vec<Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(6);
    let mut row = || -> Vec<f32> { (0..onnx::HEAVY_COLUMNS).map(|_| random.f32()).collect() };
    let request = |_| {
        let (body, header_bytes) = infer::binary_fp32("x", onnx::HEAVY_COLUMNS, &row());
        let length = header_bytes.to_string();
        let headers = [("inference-header-content-length", length.as_str())];
        http1::request("POST", &infer::path(ENDPOINT), &headers, &body)
    };
    (0..16).map(request).collect()
}

fn load(server: &Server, connections: usize) -> Load {
    let requests = Arc::new(requests());
    Load { address: server.http, connections, requests, check: status_200() }
}

/// The median time of a request on its own, microseconds.
fn single(server: &Server) -> Result<f64> {
    let outcome = load(server, 1).run(Duration::from_secs(2))?;
    Ok(f64::from(outcome.latency_us(0.5)))
}

/// Answers a second when clients wait for theirs: the best of three.
fn capacity(args: &Args, server: &Server) -> Result<f64> {
    let mut best: f64 = 0.0;
    for _ in 0..3 {
        let time = Duration::from_secs_f64(args.capacity_seconds / 3.0);
        best = best.max(load(server, CAPACITY_CONNECTIONS).run(time)?.rps());
    }
    ensure!(best > 0.0, "the model answers nothing");
    Ok(best)
}

/// Time until ten requests in a row are answered about as fast as before.
fn recovery(server: &Server, single_us: f64) -> Result<Duration> {
    let started = Instant::now();
    let mut client = server.client();
    let (mut good_since, mut good_count) = (Duration::ZERO, 0);
    let requests = requests();
    let body = |request: &[u8]| -> Option<Vec<u8>> {
        let at = request.windows(4).position(|w| w == b"\r\n\r\n")?;
        Some(request[at + 4..].to_vec())
    };
    let body = body(&requests[0]).context("a request without a body")?;
    let length =
        infer::binary_fp32("x", onnx::HEAVY_COLUMNS, &[0.5; onnx::HEAVY_COLUMNS]).1.to_string();
    let headers = [("inference-header-content-length", length.as_str())];
    while good_count < 10 {
        ensure!(started.elapsed() < Duration::from_secs(60), "the server does not recover");
        let sent = started.elapsed();
        let answer = client.send("POST", &infer::path(ENDPOINT), &headers, &body)?;
        let took_us = (started.elapsed() - sent).as_secs_f64() * 1e6;
        if answer.status != 200 || took_us > single_us * 2.0 + 2_000.0 {
            good_count = 0;
            wait::pass(Duration::from_millis(5));
            continue;
        }
        if good_count == 0 {
            good_since = sent;
        }
        good_count += 1;
    }
    Ok(good_since)
}

/// Samples the server's resident memory.
struct RssWatch {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl RssWatch {
    fn start(server: &Server) -> Self {
        let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let path = format!("/proc/{}/statm", server.pid());
        let (flag, most) = (stop.clone(), peak.clone());
        let thread = std::thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                let pages = text.split(' ').nth(1).and_then(|text| text.parse::<u64>().ok());
                most.fetch_max(pages.unwrap_or(0) * 4_096, Ordering::Relaxed);
                wait::pass(Duration::from_millis(50));
            }
        });
        Self { stop, peak, thread }
    }

    fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        // It only reads a file; a panic there would leave the peak as it is.
        let _ = self.thread.join();
        self.peak.load(Ordering::Relaxed)
    }
}

/// CPU time of this process.
fn own_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a local of the right type.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn latency(answers: &[&Answer], share: f64) -> u32 {
    let mut values: Vec<u32> = answers.iter().map(|answer| answer.latency_us).collect();
    stats::percentile(&mut values, share)
}

fn print(args: &Args, measured: &Measured) -> Result<()> {
    let all = &measured.offered.answers;
    let of = |pick: &dyn Fn(u16) -> bool| -> Vec<&Answer> {
        all.iter().filter(|answer| pick(answer.status)).collect()
    };
    let (accepted, refused) = (of(&|s| s == 200), of(&|s| s == 429 || s == 503));
    let (late, other) = (of(&|s| s == 504), of(&|s| ![200, 429, 503, 504].contains(&s)));
    let goodput = accepted.len() as f64 / args.seconds;
    let unexplained = refused.iter().filter(|answer| !answer.has_retry_after).count();
    println!(
        "one request alone {:.1} ms; capacity {:.0}/s; offered {:.0}/s for {} s, {} unsent",
        measured.single_us / 1e3,
        measured.capacity,
        measured.capacity * args.factor,
        args.seconds,
        measured.offered.unsent
    );
    println!("{:<12} {:>9} {:>10} {:>10}", "", "requests", "p50 us", "p99 us");
    let rows =
        [("answered", &accepted), ("refused", &refused), ("too late", &late), ("else", &other)];
    for (name, answers) in rows {
        let [p50, p99] = [0.5, 0.99].map(|share| latency(answers, share));
        println!("{name:<12} {:>9} {p50:>10} {p99:>10}", answers.len());
    }
    let result: Value = json!({
        "capacity_rps": measured.capacity, "offered_rps": measured.capacity * args.factor,
        "goodput_ratio": goodput / measured.capacity,
        "accepted_p99_us": latency(&accepted, 0.99), "deadline_us": args.deadline_ms * 1_000,
        "refusal_p50_us": latency(&refused, 0.5), "refusal_p99_us": latency(&refused, 0.99),
        "rss_before_bytes": measured.rss_before, "rss_peak_bytes": measured.rss_peak,
        "recovery_ms": measured.recovery.as_secs_f64() * 1e3,
        "accepted": accepted.len(), "refused": refused.len(), "deadline_exceeded": late.len(),
        "other": other.len(), "unsent": measured.offered.unsent,
        "refusals_without_retry_after": unexplained,
        "single_us": measured.single_us, "seconds": args.seconds,
        "generator_cores": measured.generator_cpu,
    });
    report::print(result, json!({"mortise": report::our_version()}));
    Ok(())
}
