use super::body::{self, off_worker};
use super::reply::{self, Reply};
use super::route::ModelRoute;
use super::{Control, DataPlane};
use bytes::Bytes;
use http::Request;
use hyper::body::Incoming;
use mortise_serve::{Endpoint, Readiness, Revision};
use mortise_types::{Error, Result};
use mortise_wire::{
    IndexEntry, ModelConfig, ModelMetadata, ServerMetadata, index_body, model_ready_body,
    wants_ready_only,
};
use std::sync::Arc;
use tokio::time::Instant;

/// The extensions that are served, all of them and no others.
const EXTENSIONS: &[&str] =
    &["binary_tensor_data", "classification", "model_configuration", "model_repository"];

/// `GET /v2`
pub(super) fn server_metadata() -> Bytes {
    let version = env!("CARGO_PKG_VERSION");
    ServerMetadata { name: "mortise", version, extensions: EXTENSIONS }.body()
}

/// The GETs under `/v2/models/{m}`.
pub(super) fn describe(
    plane: &DataPlane,
    name: &str,
    version: Option<&str>,
    what: ModelRoute,
) -> Reply {
    match try_describe(plane, name, version, what) {
        Ok(reply) => reply,
        Err(error) => reply::error(&error),
    }
}

fn try_describe(
    plane: &DataPlane,
    name: &str,
    version: Option<&str>,
    what: ModelRoute,
) -> Result<Reply> {
    let endpoint = plane
        .registry
        .endpoint(name)
        .ok_or_else(|| Error::not_found(format!("unknown model \"{name}\"")))?;
    let live = endpoint.live();
    if let Some(live) = &live {
        check_version(name, version, live)?;
    }
    if what == ModelRoute::Ready {
        return Ok(match endpoint.readiness() {
            Readiness::Ready => reply::json(model_ready_body(name, None)),
            Readiness::NotReady(why) => reply::unavailable(model_ready_body(name, Some(&why))),
        });
    }
    let revision = live.ok_or_else(|| Error::not_ready(why_not_ready(&endpoint)))?;
    Ok(reply::json(match what {
        ModelRoute::Config => config(name, &revision),
        _ => metadata(name, &revision),
    }))
}

fn check_version(name: &str, version: Option<&str>, live: &Revision) -> Result<()> {
    match version {
        Some(wanted) if wanted.parse() != Ok(live.version()) => Err(Error::not_found(format!(
            "model \"{name}\" has no version \"{wanted}\"; version {} is live",
            live.version()
        ))),
        _ => Ok(()),
    }
}

fn why_not_ready(endpoint: &Endpoint) -> String {
    match endpoint.readiness() {
        Readiness::NotReady(why) => why,
        // It became ready since it was looked at.
        Readiness::Ready => format!("model \"{}\" is not ready: it is loading", endpoint.name()),
    }
}

fn platform(revision: &Revision) -> &str {
    revision.model().map_or("", |model| model.name.as_str())
}

fn metadata(name: &str, revision: &Revision) -> Bytes {
    ModelMetadata {
        name,
        versions: &[revision.version()],
        platform: platform(revision),
        signature: revision.signature(),
    }
    .body()
}

fn config(name: &str, revision: &Revision) -> Bytes {
    let stages: Vec<&str> = revision.stages().iter().map(|stage| stage.name.as_str()).collect();
    let digest = revision.model().map(|model| model.digest.clone()).unwrap_or_default();
    ModelConfig {
        name,
        version: revision.version(),
        platform: platform(revision),
        signature: revision.signature(),
        parameters: &[
            ("revision", revision.number().to_string()),
            ("stages", stages.join(",")),
            ("plugin_digest", digest),
        ],
    }
    .body()
}

/// `POST /v2/repository/index`
pub(super) async fn index(plane: &Arc<DataPlane>, request: Request<Incoming>) -> Reply {
    match try_index(plane, request).await {
        Ok(body) => reply::json(body),
        Err(error) => reply::error(&error),
    }
}

async fn try_index(plane: &Arc<DataPlane>, request: Request<Incoming>) -> Result<Bytes> {
    let body = read_body(plane, request).await?;
    let ready_only = wants_ready_only(&body, &plane.limits)?;
    let entries: Vec<IndexEntry> = plane
        .registry
        .list()
        .iter()
        .map(|endpoint| index_entry(endpoint))
        .filter(|entry| !ready_only || entry.is_ready())
        .collect();
    Ok(index_body(&entries))
}

fn index_entry(endpoint: &Endpoint) -> IndexEntry {
    let version = endpoint.live().map(|live| live.version());
    let not_ready = match endpoint.readiness() {
        Readiness::Ready => None,
        Readiness::NotReady(why) => Some(why),
    };
    IndexEntry::new(endpoint.name(), version, not_ready)
}

/// `POST /v2/repository/models/{m}/load`
pub(super) async fn load(plane: &Arc<DataPlane>, name: &str, request: Request<Incoming>) -> Reply {
    repository(plane, name, request, |control, name| control.load(name)).await
}

/// `POST /v2/repository/models/{m}/unload`
pub(super) async fn unload(
    plane: &Arc<DataPlane>,
    name: &str,
    request: Request<Incoming>,
) -> Reply {
    repository(plane, name, request, |control, name| control.unload(name)).await
}

async fn repository(
    plane: &Arc<DataPlane>,
    name: &str,
    request: Request<Incoming>,
    action: fn(&dyn Control, &str) -> Result<()>,
) -> Reply {
    match try_repository(plane, name, request, action).await {
        Ok(()) => reply::done(),
        Err(error) => reply::error(&error),
    }
}

async fn try_repository(
    plane: &Arc<DataPlane>,
    name: &str,
    request: Request<Incoming>,
    action: fn(&dyn Control, &str) -> Result<()>,
) -> Result<()> {
    let body = read_body(plane, request).await?;
    if !plane.settings.repository_control {
        return Err(Error::forbidden(
            "loading and unloading on the data port is switched off; set \
             http.repository_control = true, or use the admin API",
        ));
    }
    refuse_overrides(&body)?;
    let (control, name) = (plane.control.clone(), name.to_owned());
    off_worker(true, move || action(&*control, &name)).await?
}

/// Clients may send a configuration or files to load a model with; here that
/// is a deployment.
fn refuse_overrides(body: &[u8]) -> Result<()> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(());
    }
    let body: serde_json::Value = serde_json::from_slice(body)
        .map_err(|error| Error::invalid(format!("the request is not valid JSON: {error}")))?;
    let parameters = body.get("parameters").and_then(serde_json::Value::as_object);
    let mut names = parameters.into_iter().flat_map(|parameters| parameters.keys());
    match names.find(|name| *name != "unload_dependents") {
        None => Ok(()),
        Some(name) => Err(Error::unsupported(format!(
            "parameter {name:?}: a model is loaded as it was deployed; deploy a new version instead"
        ))),
    }
}

async fn read_body(plane: &Arc<DataPlane>, request: Request<Incoming>) -> Result<Bytes> {
    let deadline = Instant::now() + plane.settings.request_timeout;
    let (head, body) = request.into_parts();
    body::read(plane, &head.headers, body, deadline).await
}
