use super::{DataPlane, answer};
use crate::net::{
    Acceptor, Activity, Listening, Table, Timeouts, Tls, Transport, Watched, Workers, drive,
};
use http::{Request, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// Requests that one HTTP/2 connection may have open at once.
const MAX_STREAMS: u32 = 128;

/// Streams that a client may reset before the server has looked at them; one
/// more and the connection is closed. It must not exceed what a client that
/// cancels everything it has open does in good faith.
const MAX_PENDING_RESETS: usize = MAX_STREAMS as usize;

/// How often an idle HTTP/2 peer is asked whether it is still there, and how
/// long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Accepts connections until `stop`, then lets the open ones finish their
/// requests.
pub(super) async fn serve(
    listener: TcpListener,
    workers: Arc<Workers>,
    tls: Option<Arc<Tls>>,
    plane: Arc<DataPlane>,
    stop: impl Future<Output = ()>,
) {
    let settings = &plane.settings;
    let timeouts = Timeouts { header: settings.header_timeout, idle: settings.idle_timeout };
    let listening = Listening {
        listener,
        workers,
        table: Table::new(timeouts),
        max_connections: settings.max_connections,
        tls,
        drain_delay: settings.drain_delay,
        counters: plane.observer.http.connections.clone(),
    };
    listening.run(plane, stop).await;
}

impl Acceptor for DataPlane {
    async fn serve<S: Transport>(
        self: Arc<Self>,
        stream: Watched<S>,
        activity: Arc<Activity>,
        is_http2: bool,
    ) {
        if is_http2 {
            serve_http2(self, stream, activity).await;
        } else {
            serve_http1(self, stream, activity).await;
        }
    }
}

async fn serve_http1<S: Transport>(
    plane: Arc<DataPlane>,
    stream: Watched<S>,
    activity: Arc<Activity>,
) {
    let max_header_bytes = plane.settings.max_header_bytes;
    let of_request = activity.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (plane, under_way) = (plane.clone(), of_request.request());
        async move {
            let mut reply = answer(&plane, request).await;
            if !plane.control.is_ready() {
                // The client's next request goes to another connection, and so
                // to another server.
                let close = header::HeaderValue::from_static("close");
                reply.headers_mut().insert(header::CONNECTION, close);
            }
            drop(under_way);
            Ok::<_, Infallible>(reply)
        }
    });
    // The table's timeouts replace hyper's, which arm a timer for each request
    // and close connections that are kept alive.
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_header_size(max_header_bytes)
        .serve_connection(TokioIo::new(stream), service);
    drive(connection, &activity).await;
}

async fn serve_http2<S: Transport>(
    plane: Arc<DataPlane>,
    stream: Watched<S>,
    activity: Arc<Activity>,
) {
    activity.set_multiplexed();
    let max_header_bytes = u32::try_from(plane.settings.max_header_bytes).unwrap_or(u32::MAX);
    let of_request = activity.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let plane = plane.clone();
        let under_way = of_request.request_among_others(request.extensions_mut());
        async move {
            let reply = answer(&plane, request).await;
            drop(under_way);
            Ok::<_, Infallible>(reply)
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_header_list_size(max_header_bytes)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    drive(connection, &activity).await;
}
