use super::{DataPlane, answer};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// How long accepting pauses after the system refused it (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Requests that one HTTP/2 connection may have open at once.
const MAX_STREAMS: u32 = 128;

/// How often an idle HTTP/2 peer is asked whether it is still there, and how
/// long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the first byte of a preface waits for the next two.
const PREFACE_PAUSE: Duration = Duration::from_millis(2);

/// What every HTTP/2 connection begins with, and no HTTP/1 request.
const PREFACE: &[u8; 3] = b"PRI";

/// Accepts connections until `stop`, then lets the open ones finish their
/// requests.
pub(super) async fn serve(
    listener: TcpListener,
    plane: Arc<DataPlane>,
    stop: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(plane.settings.max_connections));
    let (open, stopping) = watch::channel(());
    tokio::select! {
        () = accept_all(&listener, &plane, &slots, || (graceful.watcher(), stopping.clone())) => {}
        () = stop => {}
    }
    drop((listener, open));
    graceful.shutdown().await;
}

async fn accept_all(
    listener: &TcpListener,
    plane: &Arc<DataPlane>,
    slots: &Arc<Semaphore>,
    watch: impl Fn() -> (Watcher, watch::Receiver<()>),
) {
    loop {
        if slots.available_permits() == 0 {
            plane.observer.http.connection_waited();
        }
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _peer)) => {
                let (watcher, stopping) = watch();
                let connection = Connection { plane: plane.clone(), watcher, stopping };
                tokio::spawn(connection.serve(stream, slot));
            }
            Err(error) => {
                plane.observer.http.accept_failed();
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

struct Connection {
    plane: Arc<DataPlane>,
    watcher: Watcher,
    /// Closed when the server stops.
    stopping: watch::Receiver<()>,
}

impl Connection {
    /// Serves until the client leaves. Its failures are no event: the client
    /// broke off, or spoke no HTTP.
    async fn serve(mut self, stream: TcpStream, slot: OwnedSemaphorePermit) {
        let _open = self.plane.observer.http.connected();
        // Without it small replies would wait for the client's next packet.
        let _ = stream.set_nodelay(true);
        let header_timeout = self.plane.settings.header_timeout;
        let speaks_http2 = tokio::select! {
            speaks = is_http2(&stream) => speaks.ok(),
            () = tokio::time::sleep(header_timeout) => None,
            _ = self.stopping.changed() => None,
        };
        match speaks_http2 {
            Some(true) => self.serve_http2(stream).await,
            Some(false) => self.serve_http1(stream).await,
            None => {}
        }
        drop(slot);
    }

    async fn serve_http1(self, stream: TcpStream) {
        let plane = self.plane;
        let header_timeout = plane.settings.header_timeout;
        let service = service_fn(move |request| {
            let plane = plane.clone();
            async move { Ok::<_, Infallible>(answer(&plane, request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .serve_connection(TokioIo::new(stream), service);
        let _ = self.watcher.watch(connection).await;
    }

    async fn serve_http2(self, stream: TcpStream) {
        let plane = self.plane;
        let service = service_fn(move |request| {
            let plane = plane.clone();
            async move { Ok::<_, Infallible>(answer(&plane, request).await) }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let _ = self.watcher.watch(connection).await;
    }
}

/// Whether the client begins with the HTTP/2 preface. Reads nothing.
async fn is_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; PREFACE.len()];
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
        tokio::time::sleep(PREFACE_PAUSE).await;
    }
}
