//! The data plane: the Open Inference Protocol over HTTP/1.1 and HTTP/2 with
//! prior knowledge. Routing is direct; nothing on the way of a small request
//! spawns a task or crosses a channel.

mod body;
mod encoding;
mod infer;
mod listen;
mod models;
mod reply;
mod route;
#[cfg(test)]
mod tests;

use crate::app::{App, Shutdown};
use crate::auth::ApiKeys;
use crate::config::HttpSettings;
use body::BodyBudget;
use bytes::Bytes;
use http::{Method, Request, header};
use hyper::body::Incoming;
use mortise_observe::Observer;
use mortise_serve::Registry;
use mortise_types::Result;
use mortise_wire::WireLimits;
use reply::Reply;
use route::{ModelRoute, Route};
use std::sync::Arc;
use tokio::net::TcpListener;

/// Serves the protocol on `listener` until the server stops, then lets the
/// requests under way finish.
pub(crate) async fn serve_http(listener: TcpListener, app: Arc<App>, mut shutdown: Shutdown) {
    let plane = DataPlane {
        registry: app.registry.clone(),
        settings: app.config.http.clone(),
        limits: WireLimits::default(),
        observer: app.observer.clone(),
        keys: app.keys.clone(),
        body_bytes: BodyBudget::new(app.config.http.max_buffered_body_bytes),
        control: app.clone(),
    };
    let stop = async move { shutdown.requested().await };
    listen::serve(listener, app.tls.clone(), Arc::new(plane), stop).await;
}

/// What the data plane answers from.
struct DataPlane {
    registry: Arc<Registry>,
    settings: HttpSettings,
    limits: WireLimits,
    observer: Arc<Observer>,
    /// Who may ask for anything but the server's health; everybody without it.
    keys: Option<Arc<ApiKeys>>,
    body_bytes: Arc<BodyBudget>,
    control: Arc<dyn Control>,
}

/// What the data plane asks of the server around it.
trait Control: Send + Sync {
    fn is_ready(&self) -> bool;

    /// Blocks until the model is live.
    fn load(&self, name: &str) -> Result<()>;

    fn unload(&self, name: &str) -> Result<()>;
}

/// Who the audit log names for loads and unloads on the data port.
const WHO: &str = "repository control on the data port";

impl Control for App {
    fn is_ready(&self) -> bool {
        App::is_ready(self)
    }

    fn load(&self, name: &str) -> Result<()> {
        self.deployer.load(name, WHO).map(drop)
    }

    fn unload(&self, name: &str) -> Result<()> {
        self.deployer.unload(name, WHO).map(drop)
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
    if is_get != route.is_get() || (!is_get && request.method() != Method::POST) {
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
        Route::Server => reply::json(models::server_metadata()),
        Route::Model { name, version, what: ModelRoute::Infer } => {
            let target = infer::Target { name, version: version.as_deref(), client };
            infer::infer(plane, target, request).await
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
