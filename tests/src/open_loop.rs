//! Open-loop load: requests are sent when they are due, whether or not earlier
//! ones have been answered. One thread drives all connections.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::load::Connection;

/// What to offer.
#[derive(Clone)]
pub struct OpenLoop {
    pub address: SocketAddr,
    /// Sent in turn.
    pub requests: Arc<Vec<Vec<u8>>>,
    pub per_second: f64,
    pub duration: Duration,
    /// Connections at most; what is due when all are busy counts as unsent.
    pub max_connections: usize,
}

/// How one request ended.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// When it was due, from the start of the run.
    pub due: Duration,
    /// From then to the answer, so that a late sender hides nothing.
    pub latency_us: u32,
    /// 0 when the connection broke.
    pub status: u16,
    pub has_retry_after: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Offered {
    pub answers: Vec<Answer>,
    pub unsent: usize,
    pub elapsed: Duration,
}

#[derive(Default)]
struct Shared {
    idle: Vec<Connection>,
    open: usize,
    outcome: Offered,
}

impl OpenLoop {
    /// # Errors
    /// There is nothing to send, or no runtime can be made.
    pub fn run(&self) -> Result<Offered> {
        ensure!(!self.requests.is_empty() && self.per_second > 0.0, "there is nothing to send");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = tokio::task::LocalSet::new();
        let shared = Rc::new(RefCell::new(Shared::default()));
        local.block_on(&runtime, self.offer(shared.clone()));
        let outcome = std::mem::take(&mut shared.borrow_mut().outcome);
        Ok(outcome)
    }

    async fn offer(&self, shared: Rc<RefCell<Shared>>) {
        let started = Instant::now();
        let count = (self.per_second * self.duration.as_secs_f64()) as usize;
        let mut tasks = tokio::task::JoinSet::new();
        for index in 0..count {
            let due = Duration::from_secs_f64(index as f64 / self.per_second);
            tokio::time::sleep_until((started + due).into()).await;
            let connection = match self.connection(&shared) {
                Some(connection) => connection,
                None => {
                    shared.borrow_mut().outcome.unsent += 1;
                    continue;
                }
            };
            let (load, shared) = (self.clone(), shared.clone());
            tasks.spawn_local(load.send(index, started, due, connection, shared));
            while tasks.try_join_next().is_some() {}
        }
        while tasks.join_next().await.is_some() {}
        shared.borrow_mut().outcome.elapsed = started.elapsed();
    }

    /// An idle connection, or the right to open one.
    fn connection(&self, shared: &Rc<RefCell<Shared>>) -> Option<Option<Connection>> {
        let mut shared = shared.borrow_mut();
        if let Some(idle) = shared.idle.pop() {
            return Some(Some(idle));
        }
        let may_open = shared.open < self.max_connections;
        shared.open += usize::from(may_open);
        may_open.then_some(None)
    }

    async fn send(
        self,
        index: usize,
        started: Instant,
        due: Duration,
        connection: Option<Connection>,
        shared: Rc<RefCell<Shared>>,
    ) {
        let answer = self.exchange(index, connection).await;
        let latency = started.elapsed().saturating_sub(due);
        let latency_us = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        let mut shared = shared.borrow_mut();
        let (status, has_retry_after) = match answer {
            Ok((status, has_retry_after, connection)) => {
                shared.idle.push(connection);
                (status, has_retry_after)
            }
            Err(_) => {
                shared.open -= 1;
                (0, false)
            }
        };
        shared.outcome.answers.push(Answer { due, latency_us, status, has_retry_after });
    }

    async fn exchange(
        &self,
        index: usize,
        connection: Option<Connection>,
    ) -> Result<(u16, bool, Connection)> {
        let mut connection = match connection {
            Some(connection) => connection,
            None => Connection::open(self.address).await?,
        };
        let frame = connection.exchange(&self.requests[index % self.requests.len()]).await?;
        let has_retry_after =
            connection.head(&frame).windows(13).any(|w| w.eq_ignore_ascii_case(b"\r\nretry-after"));
        connection.consume(&frame);
        Ok((frame.status, has_retry_after, connection))
    }
}
