use super::table::{Activity, Registered, TICK, Table};
use super::tls::Tls;
use super::watched::Watched;
use super::workers::Workers;
use mortise_observe::ConnectionCounters;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long accepting pauses after the system refused it (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long the first bytes of a preface wait for the rest: the first and the
/// longest pause. It doubles, so that a client that never sends the rest costs
/// nothing.
const FIRST_PREFACE_PAUSE: Duration = Duration::from_millis(1);
const MAX_PREFACE_PAUSE: Duration = Duration::from_millis(250);

/// What every HTTP/2 connection begins with, and no HTTP/1 request.
const PREFACE: &[u8; 3] = b"PRI";

/// What a connection is carried by.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for T {}

/// Serves the connections of one listener.
pub(crate) trait Acceptor: Send + Sync + 'static {
    /// Serves until the client leaves or `activity` says that it ends. Failures
    /// are no event: the client broke off, or spoke no HTTP.
    fn serve<S: Transport>(
        self: Arc<Self>,
        stream: Watched<S>,
        activity: Arc<Activity>,
        is_http2: bool,
    ) -> impl Future<Output = ()> + Send;
}

/// One listener of the data plane.
pub(crate) struct Listening {
    pub(crate) listener: TcpListener,
    pub(crate) workers: Arc<Workers>,
    pub(crate) table: Arc<Table>,
    pub(crate) max_connections: usize,
    pub(crate) tls: Option<Arc<Tls>>,
    /// How long connections are still taken, and idle ones kept, after the
    /// server was told to stop.
    pub(crate) drain_delay: Duration,
    pub(crate) counters: ConnectionCounters,
}

impl Listening {
    /// Accepts until `stop` and a moment longer, then lets the open connections
    /// finish their requests.
    pub(crate) async fn run<A: Acceptor>(self, acceptor: Arc<A>, stop: impl Future<Output = ()>) {
        let slots = Arc::new(Semaphore::new(self.max_connections));
        let stopped = async {
            stop.await;
            // Whoever had a connection learns from the next reply to leave it,
            // and whoever asks for readiness that there will be no other.
            tokio::time::sleep(self.drain_delay).await;
        };
        let on_timeout = |count| self.counters.timed_out(count);
        tokio::select! {
            () = self.accept_all(&acceptor, &slots) => {}
            () = self.table.watch(on_timeout) => {}
            () = stopped => {}
        }
        let Self { listener, workers, table, tls, counters, .. } = self;
        let opening = Opening { workers: &workers, table: &table, tls: &tls, counters: &counters };
        if let Err(error) = accept_backlog(listener, &opening, &acceptor, &slots) {
            tracing::debug!(%error, "connections that waited to be accepted were reset");
        }
        tokio::select! {
            () = table.watch(|count| counters.timed_out(count)) => {}
            _ = async { tokio::join!(table.finish_all(), table.emptied()) } => {}
        }
    }

    async fn accept_all<A: Acceptor>(&self, acceptor: &Arc<A>, slots: &Arc<Semaphore>) {
        loop {
            let accepted = self.listener.accept().await;
            match accepted.and_then(|(stream, _peer)| stream.into_std()) {
                // Room is made for a connection that is there, not for one that
                // may come.
                Ok(stream) => {
                    let slot = self.slot(slots).await;
                    self.opening().open(acceptor, stream, slot);
                }
                Err(error) => {
                    self.counters.accept_failed();
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn opening(&self) -> Opening<'_> {
        let Self { workers, table, tls, counters, .. } = self;
        Opening { workers, table, tls, counters }
    }

    /// A place for one connection, taken from the quietest when all are taken.
    async fn slot(&self, slots: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        if let Ok(slot) = slots.clone().try_acquire_owned() {
            return Some(slot);
        }
        self.counters.waited();
        loop {
            self.counters.evicted(self.table.make_room());
            match tokio::time::timeout(TICK, slots.clone().acquire_owned()).await {
                Ok(slot) => return slot.ok(),
                Err(_elapsed) => {}
            }
        }
    }
}

/// Takes what the system has accepted already, then closes the listener, which
/// would reset it. Asks the system itself: what tokio knows of the listener is
/// as old as its last look.
fn accept_backlog<A: Acceptor>(
    listener: TcpListener,
    opening: &Opening<'_>,
    acceptor: &Arc<A>,
    slots: &Arc<Semaphore>,
) -> io::Result<()> {
    let listener = listener.into_std()?;
    while let Ok(slot) = slots.clone().try_acquire_owned() {
        match listener.accept() {
            Ok((stream, _peer)) => {
                stream.set_nonblocking(true)?;
                opening.open(acceptor, stream, Some(slot));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What every accepted connection is given.
struct Opening<'a> {
    workers: &'a Workers,
    table: &'a Arc<Table>,
    tls: &'a Option<Arc<Tls>>,
    counters: &'a ConnectionCounters,
}

impl Opening<'_> {
    fn open<A: Acceptor>(
        &self,
        acceptor: &Arc<A>,
        stream: std::net::TcpStream,
        slot: Option<OwnedSemaphorePermit>,
    ) {
        let connection = Connection {
            entry: self.table.open(),
            tls: self.tls.clone(),
            acceptor: acceptor.clone(),
            counters: self.counters.clone(),
        };
        self.workers.serve(move || async move {
            match TcpStream::from_std(stream) {
                Ok(stream) => connection.serve(stream).await,
                Err(error) => tracing::warn!(%error, "cannot serve a connection"),
            }
            drop(slot);
        });
    }
}

struct Connection<A> {
    entry: Registered,
    tls: Option<Arc<Tls>>,
    acceptor: Arc<A>,
    counters: ConnectionCounters,
}

impl<A: Acceptor> Connection<A> {
    async fn serve(self, stream: TcpStream) {
        let _open = self.counters.connected();
        // Without it small replies would wait for the client's next packet.
        let _ = stream.set_nodelay(true);
        let activity = self.entry.activity().clone();
        match &self.tls {
            None => {
                if let Some(Ok(is_http2)) = activity.unless_ended(is_http2(&stream)).await {
                    let stream = Watched::new(stream, activity.clone());
                    self.acceptor.serve(stream, activity, is_http2).await;
                }
            }
            Some(tls) => match activity.unless_ended(tls.accept(stream)).await {
                Some(Ok(stream)) => {
                    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    let stream = Watched::new(stream, activity.clone());
                    self.acceptor.serve(stream, activity, is_http2).await;
                }
                Some(Err(error)) => {
                    self.counters.handshake_failed();
                    tracing::debug!(%error, "a TLS handshake failed");
                }
                None => {}
            },
        }
    }
}

/// Whether the client begins with the HTTP/2 preface. Reads nothing.
async fn is_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; PREFACE.len()];
    let mut pause = FIRST_PREFACE_PAUSE;
    loop {
        let length = stream.peek(&mut first).await?;
        let seen = first.get(..length).unwrap_or_default();
        if length == 0 || seen != &PREFACE[..length] {
            return Ok(false);
        }
        if length == PREFACE.len() {
            return Ok(true);
        }
        // Peeking returns at once as long as there is anything to see.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PREFACE_PAUSE);
    }
}
