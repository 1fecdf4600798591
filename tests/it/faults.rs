//! Clients that misbehave, beside one that does not: it must lose nothing, and
//! the server's memory must stay within a bound.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use mortise_tests::{Client, Deployment, Options, Server, http1, infer, onnx, wait};

/// Memory beyond the idle server's that no fault here may take.
const MAX_GROWTH_BYTES: u64 = 300 << 20;

fn start(config: &str) -> Result<Server> {
    let server = Server::start_with(Options { config: config.into(), ..Options::default() })?;
    server.admin()?.deploy("sum", &Deployment::onnx(onnx::tagged_sum(7.0)))?;
    Ok(server)
}

/// A client that asks all the time and wants every answer to be right.
struct Neighbour {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    thread: JoinHandle<Result<()>>,
}

impl Neighbour {
    fn start(address: SocketAddr) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (stop.clone(), answered.clone());
        let thread = std::thread::spawn(move || {
            let mut client = Client::new(address).with_timeout(Duration::from_secs(20));
            while !stopped.load(Ordering::Relaxed) {
                let body = infer::json_fp32("x", 1, &[1.0]);
                let answer = client.post(&infer::path("sum"), &body)?.ok()?;
                ensure!(answer.text().contains("[8.0]"), "{}", answer.text());
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { stop, answered, thread }
    }

    /// Its requests since it began, all of them answered rightly.
    fn finish(self) -> Result<usize> {
        // It must have been served after the fault as well.
        let before = self.answered.load(Ordering::Relaxed);
        let served =
            || Ok(self.thread.is_finished() || self.answered.load(Ordering::Relaxed) > before);
        wait::until("the neighbour to be served", Duration::from_secs(30), served)?;
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the neighbour panicked"))??;
        Ok(self.answered.load(Ordering::Relaxed))
    }
}

/// Runs a fault beside a neighbour, and checks that memory stayed bounded.
fn beside_a_neighbour(server: &Server, fault: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = server.rss_bytes()?;
    let neighbour = Neighbour::start(server.http);
    fault()?;
    let grown = server.rss_bytes()?.saturating_sub(before);
    let answered = neighbour.finish()?;
    ensure!(answered > 10, "the neighbour was answered only {answered} times");
    ensure!(grown < MAX_GROWTH_BYTES, "memory grew by {grown} bytes");
    Ok(())
}

fn open(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

/// Whether the server ends this connection, by closing or by a reset.
fn is_ended(mut stream: &TcpStream) -> bool {
    let mut bytes = [0; 1024];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => {
                return !matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                );
            }
        }
    }
}

#[test]
fn half_requests_and_slow_ones_end_in_time() -> Result<()> {
    let server = start("[http]\nheader_timeout_ms = 1000\nrequest_timeout_ms = 2000\n")?;
    beside_a_neighbour(&server, || {
        let whole = http1::request("POST", &infer::path("sum"), &[], &[b' '; 1000]);
        let half = whole.len() - 500;
        let silent: Vec<TcpStream> = [&b""[..], b"P", b"POST /v2", &whole[..half]]
            .iter()
            .map(|begin| {
                let mut stream = open(server.http)?;
                stream.write_all(begin)?;
                Ok(stream)
            })
            .collect::<Result<_>>()?;
        let head = whole.len() - 1000;
        // However the bytes come, a head has one deadline, and so has a body.
        ensure!(ends_in_time(server.http, &whole, 0)?, "a head that drips was kept");
        ensure!(ends_in_time(server.http, &whole, head)?, "a body that drips was kept");
        ensure!(silent.iter().all(is_ended), "a silent client was kept");
        Ok(())
    })
}

/// Sends the first `at_once` bytes together and the rest one by one, ten a
/// second; whether the server ends that within 8 seconds.
fn ends_in_time(address: SocketAddr, request: &[u8], at_once: usize) -> Result<bool> {
    let mut stream = open(address)?;
    let began = Instant::now();
    stream.write_all(&request[..at_once])?;
    for byte in &request[at_once..] {
        if began.elapsed() > Duration::from_secs(8) {
            return Ok(false);
        }
        if stream.write_all(&[*byte]).is_err() {
            break;
        }
        wait::pass(Duration::from_millis(100));
    }
    Ok(is_ended(&stream))
}

#[test]
fn thousands_of_idle_connections_leave_room() -> Result<()> {
    let idle = 10_000.min(descriptors()?.saturating_sub(500));
    let server = start("[http]\nmax_connections = 1024\n")?;
    let mut held = Vec::with_capacity(idle);
    beside_a_neighbour(&server, || {
        for _ in 0..idle {
            held.push(TcpStream::connect_timeout(&server.http, Duration::from_secs(20))?);
        }
        Ok(())
    })?;
    let metrics = Client::new(server.metrics).get("/metrics")?.text_whole();
    let evicted = metric(&metrics, "mortise_http_connections_evicted_total")?;
    let open = metric(&metrics, "mortise_http_connections ")?;
    assert!(evicted > 0.0 && open <= 1024.0, "{evicted} evicted, {open} open");
    Ok(())
}

/// Descriptors that this process may have, after asking for all it can get.
fn descriptors() -> Result<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write only the struct given.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit)
    };
    ensure!(raised == 0, "cannot raise the limit on open files");
    Ok(usize::try_from(limit.rlim_cur)?)
}

fn metric(page: &str, name: &str) -> Result<f64> {
    let line = page.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.rsplit(' ').next());
    value.and_then(|value| value.parse().ok()).with_context(|| format!("no {name} in\n{page}"))
}

#[test]
fn limits_on_heads_and_bodies_hold() -> Result<()> {
    let server = start("[http]\nmax_body_bytes = 1000000\nmax_header_bytes = 16384\n")?;
    beside_a_neighbour(&server, || {
        let long = "a".repeat(20_000);
        let path = infer::path("sum");
        let many: Vec<(String, &str)> = (0..200).map(|i| (format!("x-{i}"), "1")).collect();
        let many: Vec<(&str, &str)> =
            many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        for (headers, body, want) in [
            (&[("x-long", long.as_str())][..], &b""[..], 431),
            (&many, b"", 431),
            (&[], &[b' '; 2_000_000], 413),
            (&[("content-encoding", "gzip")], &bomb(200 << 20)?, 413),
            (&[("content-encoding", "gzip")], b"no gzip", 400),
            (&[], b"{\"inputs\":[{\"name\":\"\xff\xfe\"}]}", 400),
        ] {
            let status = server.client().send("POST", &path, headers, body)?.status;
            ensure!(status == want, "{status} instead of {want} for {} bytes", body.len());
        }
        let url = [
            b"POST /v2/models/\xff\xfe/infer HTTP/1.1\r\nhost: a\r\n".as_slice(),
            b"content-length: 0\r\n\r\n",
        ];
        let status = server.client().exchange(&url.concat())?.status;
        ensure!((400..500).contains(&status), "{status} for a path that is not UTF-8");
        Ok(())
    })
}

/// Zeros, compressed a thousandfold.
fn bomb(bytes: usize) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let chunk = vec![0; 1 << 20];
    for _ in 0..bytes >> 20 {
        encoder.write_all(&chunk)?;
    }
    Ok(encoder.finish()?)
}

#[test]
fn resets_in_mid_answer_cost_nothing() -> Result<()> {
    let server = start("")?;
    beside_a_neighbour(&server, || {
        let body = infer::json_fp32("x", 1, &vec![1.0; 50_000]);
        let request = http1::request("POST", &infer::path("sum"), &[], &body);
        for _ in 0..100 {
            let mut stream = open(server.http)?;
            stream.write_all(&request)?;
            // Read a little of the answer, then close with the rest unread,
            // which resets the connection.
            stream.read_exact(&mut [0; 100])?;
        }
        Ok(())
    })
}

/// Bytes of an HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `GET /v2/health/live`, with names and values from HPACK's static table where
/// it has them.
fn live_head() -> Vec<u8> {
    let path = b"/v2/health/live";
    let mut head = vec![0x82, 0x86, 0x04, path.len() as u8];
    head.extend_from_slice(path);
    head.extend_from_slice(&[0x01, 1, b'a']);
    head
}

/// Sends what `flood` makes until the server ends the connection, or `most`
/// rounds are through; whether the server ended it.
fn flood(address: SocketAddr, most: u32, flood: impl Fn(u32) -> Vec<u8>) -> Result<bool> {
    let mut stream = open(address)?;
    let mut replies = stream.try_clone()?;
    // What the server answers is taken, so that it cannot be stopped by that.
    let reader = std::thread::spawn(move || std::io::copy(&mut replies, &mut std::io::sink()));
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    let was_ended = (0..most).any(|round| stream.write_all(&flood(round)).is_err());
    // It may have been closed already.
    let _ = stream.shutdown(std::net::Shutdown::Both);
    // The copy ends with the connection, however that ended.
    let _ = reader.join();
    Ok(was_ended)
}

#[test]
fn floods_over_http2_are_stopped_or_cost_nothing() -> Result<()> {
    let server = start("")?;
    beside_a_neighbour(&server, || {
        let is_stopped = flood(server.http, 50_000, |round| {
            let stream = round * 2 + 1;
            let open = frame(HEADERS, END_HEADERS | END_STREAM, stream, &live_head());
            [open, frame(RESET, 0, stream, &[0, 0, 0, 8])].concat()
        })?;
        ensure!(is_stopped, "requests that are reset at once went on");
        let is_stopped = flood(server.http, 20_000, |round| match round {
            0 => frame(HEADERS, END_STREAM, 1, &live_head()),
            // A header of 8,000 bytes, never the last.
            _ => {
                let literal = [&[0x00, 1, b'x', 0x7f, 0xc1, 0x3d][..], &[b'a'; 8_000]].concat();
                frame(CONTINUATION, 0, 1, &literal)
            }
        })?;
        ensure!(is_stopped, "a head without an end went on");
        // Each is answered, and read no faster than its answer is written.
        flood(server.http, 100_000, |_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]))?;
        flood(server.http, 100_000, |_| frame(PING, 0, 0, &[7; 8]))?;
        Ok(())
    })
}
