use super::DataPlane;
use super::body;
use super::reply::{self, Reply};
use super::route::ModelRoute;
use crate::plane::Control;
use crate::plane::models::{
    SERVER_NAME, SERVER_VERSION, check_repository_parameters, config_parameters, platform,
};
use bytes::Bytes;
use http::Request;
use hyper::body::Incoming;
use mortise_serve::Revision;
use mortise_types::{Error, Result};
use mortise_wire::{
    ModelConfig, ModelMetadata, ServerMetadata, index_body, model_ready_body, wants_ready_only,
};
use serde_json::json;
use std::sync::Arc;
use tokio::time::Instant;

/// `GET /v2`
pub(super) fn server_metadata(plane: &DataPlane) -> Bytes {
    let extensions = plane.extensions();
    ServerMetadata { name: SERVER_NAME, version: SERVER_VERSION, extensions: &extensions }.body()
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
    if what == ModelRoute::Ready {
        return Ok(match plane.not_ready(name, version)? {
            None => reply::json(model_ready_body(name, None)),
            Some(why) => reply::unavailable(model_ready_body(name, Some(&why))),
        });
    }
    let revision = plane.live(name, version)?;
    Ok(reply::json(match what {
        ModelRoute::Config => config(name, &revision),
        _ => metadata(name, &revision, &named_versions(plane, name, version, &revision)),
    }))
}

/// All versions that answer; of a request that names one, that one.
fn named_versions(
    plane: &DataPlane,
    name: &str,
    version: Option<&str>,
    revision: &Revision,
) -> Vec<u64> {
    match version {
        Some(_) => vec![revision.version()],
        None => plane.versions(name),
    }
}

fn metadata(name: &str, revision: &Revision, versions: &[u64]) -> Bytes {
    ModelMetadata { name, versions, platform: platform(revision), signature: revision.signature() }
        .body()
}

fn config(name: &str, revision: &Revision) -> Bytes {
    ModelConfig {
        name,
        version: revision.version(),
        platform: platform(revision),
        signature: revision.signature(),
        parameters: &config_parameters(revision),
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
    Ok(index_body(&plane.index(ready_only)))
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
    refuse_overrides(&body)?;
    plane.repository(name, action).await
}

fn refuse_overrides(body: &[u8]) -> Result<()> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(());
    }
    let body: serde_json::Value = serde_json::from_slice(body)
        .map_err(|error| Error::invalid(format!("the request is not valid JSON: {error}")))?;
    let parameters = body.get("parameters").and_then(serde_json::Value::as_object);
    let parameters = parameters.into_iter().flatten();
    check_repository_parameters(parameters.map(|(name, value)| (&**name, *value == json!(false))))
}

pub(super) async fn read_body(plane: &Arc<DataPlane>, request: Request<Incoming>) -> Result<Bytes> {
    let deadline = Instant::now() + plane.settings.request_timeout;
    let (head, body) = request.into_parts();
    body::read(plane, &head.headers, body, deadline).await
}
