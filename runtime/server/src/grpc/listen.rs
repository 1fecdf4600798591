use super::GrpcServer;
use crate::app::Shutdown;
use crate::net::{
    Acceptor, Activity, Listening, RequestUnderWay, Table, Timeouts, Tls, Transport, Watched,
    Workers, drive,
};
use http::{Request, Response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::net::TcpListener;

/// Bytes that a client may send ahead on one stream, and on a connection.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// Bytes of the headers of one call.
const MAX_HEADER_BYTES: u32 = 16 << 10;

/// Serves calls on `listener` until the server stops, then lets those under
/// way finish.
pub(crate) async fn serve_grpc(
    listener: TcpListener,
    workers: Arc<Workers>,
    tls: Option<Arc<Tls>>,
    server: Arc<GrpcServer>,
    mut shutdown: Shutdown,
) {
    let settings = &server.settings;
    let timeouts = Timeouts {
        header: settings.handshake_timeout,
        // Pings keep a connection, and their timeout is the nearer one.
        idle: settings.keepalive_interval + 2 * settings.keepalive_timeout,
    };
    let listening = Listening {
        listener,
        workers,
        table: Table::new(timeouts),
        max_connections: settings.max_connections,
        tls,
        drain_delay: settings.drain_delay,
        counters: server.plane.observer.grpc.connections.clone(),
    };
    listening.run(server, async move { shutdown.requested().await }).await;
}

impl Acceptor for GrpcServer {
    async fn serve<S: Transport>(
        self: Arc<Self>,
        stream: Watched<S>,
        activity: Arc<Activity>,
        is_http2: bool,
    ) {
        // gRPC is HTTP/2 and nothing else.
        if is_http2 {
            serve_http2(self, stream, activity).await;
        }
    }
}

async fn serve_http2<S: Transport>(
    server: Arc<GrpcServer>,
    stream: Watched<S>,
    activity: Arc<Activity>,
) {
    activity.set_multiplexed();
    let settings = server.settings.clone();
    let of_call = activity.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let server = server.clone();
        let under_way = of_call.request_among_others(request.extensions_mut());
        async move {
            let (head, body) = server.answer(request).await.into_parts();
            let body = CallBody { body, _under_way: under_way };
            Ok::<_, Infallible>(Response::from_parts(head, body))
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.max_concurrent_calls)
        // What a client that cancels everything it has open does in good faith.
        .max_pending_accept_reset_streams(settings.max_concurrent_calls as usize)
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(settings.keepalive_interval)
        .keep_alive_timeout(settings.keepalive_timeout)
        .serve_connection(TokioIo::new(stream), service);
    drive(connection, &activity).await;
}

/// The answer to a call, which is under way until all of it was taken.
struct CallBody {
    body: tonic::body::Body,
    _under_way: RequestUnderWay,
}

impl Body for CallBody {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, tonic::Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
