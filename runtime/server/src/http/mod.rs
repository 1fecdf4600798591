//! The data plane: the Open Inference Protocol over HTTP/1.1 and HTTP/2 with
//! prior knowledge. Routing is direct; nothing on the way of a small request
//! spawns a task or crosses a channel.

mod body;
mod encoding;
mod extensions;
mod generate;
mod infer;
mod listen;
mod models;
mod reply;
mod route;
mod statistics;
#[cfg(test)]
mod tests;

use crate::app::{App, Shutdown};
use crate::config::HttpSettings;
use crate::net::Workers;
use crate::plane::Plane;
use bytes::Bytes;
use http::{Method, Request, header};
use hyper::body::Incoming;
use reply::Reply;
use route::{ModelRoute, Route};
use std::ops::Deref;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Serves the protocol on `listener` until the server stops, then lets the
/// requests under way finish.
pub(crate) async fn serve_http(
    listener: TcpListener,
    workers: Arc<Workers>,
    app: Arc<App>,
    plane: Arc<Plane>,
    mut shutdown: Shutdown,
) {
    let settings = app.config.http.clone();
    let plane = DataPlane { settings, plane };
    let stop = async move { shutdown.requested().await };
    listen::serve(listener, workers, app.tls.clone(), Arc::new(plane), stop).await;
}

/// The data plane over HTTP.
struct DataPlane {
    settings: HttpSettings,
    plane: Arc<Plane>,
}

impl Deref for DataPlane {
    type Target = Plane;

    fn deref(&self) -> &Plane {
        &self.plane
    }
}

const LIVE: Bytes = Bytes::from_static(b"{\"live\":true}");
const READY: Bytes = Bytes::from_static(b"{\"ready\":true}");
const NOT_READY: Bytes = Bytes::from_static(b"{\"ready\":false}");

/// Answers one request.
async fn answer(plane: &Arc<DataPlane>, request: Request<Incoming>) -> Reply {
    let reply = dispatch(plane, request).await;
    plane.observer.http.responded(reply.status().as_u16());
    reply
}

async fn dispatch(plane: &Arc<DataPlane>, request: Request<Incoming>) -> Reply {
    // A cheap copy: the route borrows the path, and the request moves on.
    let uri = request.uri().clone();
    let route = match Route::parse(uri.path()) {
        Some(route) => route,
        None => return reply::no_such_path(uri.path()),
    };
    let is_head = request.method() == Method::HEAD;
    let is_get = is_head || request.method() == Method::GET;
    let is_post = request.method() == Method::POST;
    if !(is_get && route.answers_get() || is_post && route.answers_post()) {
        return reply::wrong_method(route.allow());
    }
    let client = match &plane.keys {
        Some(keys) if !route.is_open() => match keys.check(request.headers()) {
            Ok(client) => Some(client),
            Err(denied) => return reply::unauthorized(denied.message()),
        },
        _ => None,
    };
    let reply = match &route {
        Route::Live => reply::json(LIVE),
        Route::Ready if plane.control.is_ready() => reply::json(READY),
        Route::Ready => reply::unavailable(NOT_READY),
        Route::Server => reply::json(models::server_metadata(plane)),
        Route::Model { name, version, what: ModelRoute::Infer } => {
            let target = infer::Target { name, version: version.as_deref(), client };
            infer::infer(plane, target, request).await
        }
        Route::Model { name, version, what: ModelRoute::Generate(kind) } => {
            let target = infer::Target { name, version: version.as_deref(), client };
            generate::generate(plane, target, *kind, request).await
        }
        Route::Model { name, version, what: ModelRoute::Statistics } => {
            statistics::statistics(plane, Some(name), version.as_deref())
        }
        Route::Statistics => statistics::statistics(plane, None, None),
        Route::Trace(model) => extensions::trace_settings(plane, model.as_deref(), request).await,
        Route::Logging => extensions::logging(plane, request).await,
        Route::Region { name, what } => {
            extensions::region(plane, name.as_deref(), *what, request).await
        }
        Route::Model { name, version, what } => {
            models::describe(plane, name, version.as_deref(), *what)
        }
        Route::Index => models::index(plane, request).await,
        Route::Load(name) => models::load(plane, name, request).await,
        Route::Unload(name) => models::unload(plane, name, request).await,
    };
    if is_head { without_body(reply) } else { reply }
}

/// The headers of a reply, its length included.
fn without_body(mut reply: Reply) -> Reply {
    let length = reply.body().byte_len();
    reply.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    *reply.body_mut() = reply::Body::empty();
    reply
}
