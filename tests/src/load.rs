//! Closed-loop load: each connection sends its next request when it has the
//! answer to the last. One thread drives all connections, so that the generator
//! takes little of the machine from the server beside it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http1::{self, Frame};
use crate::stats::percentile;

/// What to send, where, and for how long.
#[derive(Clone)]
pub struct Load {
    pub address: SocketAddr,
    pub connections: usize,
    /// Each connection goes through these in turn, starting at its own offset.
    pub requests: Arc<Vec<Vec<u8>>>,
    /// Judges each answer.
    pub check: Check,
}

/// `(index of the request, status, body)` to whether the answer is right.
pub type Check = Arc<dyn Fn(usize, u16, &[u8]) -> Verdict + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Right,
    /// Refused, cut off, or an error status.
    Failed,
    /// Answered, but not what the answer claims to be.
    Wrong,
}

/// A check that only looks at the status.
pub fn status_200() -> Check {
    Arc::new(|_, status, _| if status == 200 { Verdict::Right } else { Verdict::Failed })
}

/// One answered request.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it was sent, from the start of the run.
    pub sent: Duration,
    pub latency_us: u32,
}

#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub samples: Vec<Sample>,
    pub failed: usize,
    pub wrong: usize,
    pub elapsed: Duration,
}

impl Outcome {
    /// Right answers per second.
    pub fn rps(&self) -> f64 {
        self.samples.len() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Latency in microseconds at this share of the right answers.
    pub fn latency_us(&self, share: f64) -> u32 {
        let mut values: Vec<_> = self.samples.iter().map(|sample| sample.latency_us).collect();
        percentile(&mut values, share)
    }

    /// The samples sent in this part of the run.
    pub fn between(&self, from: Duration, until: Duration) -> Self {
        let inside = |sample: &&Sample| sample.sent >= from && sample.sent < until;
        let samples = self.samples.iter().filter(inside).copied().collect();
        Self { samples, elapsed: until.saturating_sub(from), ..Self::default() }
    }

    fn merge(&mut self, other: Self) {
        self.samples.extend(other.samples);
        self.failed += other.failed;
        self.wrong += other.wrong;
    }
}

/// A run in the background.
pub struct Running {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<Outcome>>,
    started: Instant,
}

impl Running {
    /// Time since the run began, on the clock of its samples.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Lets every connection finish the request it is waiting for.
    ///
    /// # Errors
    /// The run could not start.
    pub fn finish(self) -> Result<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Load {
    /// Runs for `duration`.
    ///
    /// # Errors
    /// The server cannot be reached at the start.
    pub fn run(&self, duration: Duration) -> Result<Outcome> {
        self.drive(Instant::now(), Arc::new(AtomicBool::new(false)), Some(duration))
    }

    /// Runs until [`Running::finish`].
    pub fn start(&self) -> Running {
        let (load, started) = (self.clone(), Instant::now());
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = std::thread::spawn(move || load.drive(started, flag, None));
        Running { stop, thread, started }
    }

    fn drive(
        &self,
        started: Instant,
        stop: Arc<AtomicBool>,
        limit: Option<Duration>,
    ) -> Result<Outcome> {
        ensure!(!self.requests.is_empty(), "there is nothing to send");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            let mut tasks = tokio::task::JoinSet::new();
            for index in 0..self.connections {
                let connection = Connection::open(self.address).await?;
                let (load, stop) = (self.clone(), stop.clone());
                tasks.spawn_local(load.closed_loop(index, connection, started, stop, limit));
            }
            let mut outcome = Outcome::default();
            while let Some(part) = tasks.join_next().await {
                outcome.merge(part?);
            }
            outcome.elapsed = started.elapsed();
            Ok(outcome)
        })
    }

    async fn closed_loop(
        self,
        index: usize,
        mut connection: Connection,
        started: Instant,
        stop: Arc<AtomicBool>,
        limit: Option<Duration>,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        let mut next = index % self.requests.len();
        let mut sent = started.elapsed();
        while !stop.load(Ordering::Relaxed) && limit.is_none_or(|limit| sent < limit) {
            let answer = connection.exchange(&self.requests[next]).await;
            let now = started.elapsed();
            let verdict = match &answer {
                Ok(frame) => (self.check)(next, frame.status, connection.body(frame)),
                Err(_) => Verdict::Failed,
            };
            match verdict {
                Verdict::Right => {
                    outcome.samples.push(Sample { sent, latency_us: micros(now - sent) })
                }
                Verdict::Failed => outcome.failed += 1,
                Verdict::Wrong => outcome.wrong += 1,
            }
            match answer {
                Ok(frame) => connection.consume(&frame),
                Err(_) => match Connection::open(self.address).await {
                    Ok(fresh) => connection = fresh,
                    Err(_) => return outcome,
                },
            }
            next = (next + 1) % self.requests.len();
            sent = started.elapsed();
        }
        outcome
    }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// One keep-alive connection.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("connect")?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(16 * 1024) })
    }

    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<Frame> {
        self.stream.write_all(request).await?;
        loop {
            let count = self.stream.read_buf(&mut self.buffer).await?;
            ensure!(count > 0, "the server closed the connection");
            if let Some(frame) = http1::frame(&self.buffer)? {
                return Ok(frame);
            }
        }
    }

    pub(crate) fn head(&self, frame: &Frame) -> &[u8] {
        &self.buffer[..frame.head_bytes]
    }

    fn body(&self, frame: &Frame) -> &[u8] {
        &self.buffer[frame.head_bytes..frame.total_bytes]
    }

    pub(crate) fn consume(&mut self, frame: &Frame) {
        self.buffer.drain(..frame.total_bytes);
    }
}
