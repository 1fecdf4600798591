//! Trace settings, log settings and shared-memory regions over HTTP.

use super::DataPlane;
use super::models::read_body;
use super::reply::{self, Reply};
use super::route::RegionRoute;
use crate::plane::logging::{LogSettings, LogValue};
use crate::plane::regions::RegionStatus;
use crate::trace;
use bytes::Bytes;
use http::{Method, Request};
use hyper::body::Incoming;
use mortise_types::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// `/v2/trace/setting` and `/v2/models/{m}/trace/setting`
pub(super) async fn trace_settings(
    plane: &Arc<DataPlane>,
    model: Option<&str>,
    request: Request<Incoming>,
) -> Reply {
    answer(try_trace(plane, model, request).await)
}

async fn try_trace(
    plane: &Arc<DataPlane>,
    model: Option<&str>,
    request: Request<Incoming>,
) -> Result<Value> {
    if let Some(model) = model {
        plane.endpoint(model)?;
    }
    if request.method() == Method::POST {
        let changes = settings(&read_body(plane, request).await?)?;
        if !changes.is_empty() {
            plane.permit_settings()?;
        }
        for (name, value) in changes {
            plane.tracer.update(model, &name, &trace_values(&name, value)?)?;
        }
    }
    let value = |name: &str, values: &[String]| match trace::is_list(name) {
        true => json!(values),
        false => json!(values.first()),
    };
    let settings = plane.tracer.settings();
    Ok(settings.iter().map(|(name, values)| ((*name).to_owned(), value(name, values))).collect())
}

/// Text, a list of texts, or null, which clears a setting.
fn trace_values(name: &str, value: Value) -> Result<Vec<String>> {
    let wrong = || Error::invalid(format!("{name} must be text, a list of texts, or null"));
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(text) => Ok(vec![text]),
        Value::Array(values) => {
            let text = |value: Value| value.as_str().map(str::to_owned).ok_or_else(wrong);
            values.into_iter().map(text).collect()
        }
        _ => Err(wrong()),
    }
}

/// `/v2/logging`
pub(super) async fn logging(plane: &Arc<DataPlane>, request: Request<Incoming>) -> Reply {
    answer(try_logging(plane, request).await.map(log_settings))
}

async fn try_logging(plane: &Arc<DataPlane>, request: Request<Incoming>) -> Result<LogSettings> {
    if request.method() != Method::POST {
        return Ok(plane.logging.settings());
    }
    let changes = settings(&read_body(plane, request).await?)?;
    if !changes.is_empty() {
        plane.permit_settings()?;
    }
    let changes: Vec<_> = changes.into_iter().map(log_value).collect::<Result<_>>()?;
    plane.logging.update(changes)
}

fn log_value((name, value): (String, Value)) -> Result<(String, LogValue)> {
    let value = match value {
        Value::Bool(on) => LogValue::Bool(on),
        Value::String(text) => LogValue::Text(text),
        value => match value.as_u64() {
            Some(number) => LogValue::Number(number),
            None => return Err(Error::invalid(format!("{name} cannot be {value}"))),
        },
    };
    Ok((name, value))
}

fn log_settings(settings: LogSettings) -> Value {
    json!({
        "log_file": "",
        "log_info": settings.info,
        "log_warning": settings.warning,
        "log_error": settings.error,
        "log_verbose_level": settings.verbose_level,
        "log_format": "default",
    })
}

/// `/v2/systemsharedmemory[/region/{r}]/{status,register,unregister}`
pub(super) async fn region(
    plane: &Arc<DataPlane>,
    name: Option<&str>,
    what: RegionRoute,
    request: Request<Incoming>,
) -> Reply {
    let outcome = match what {
        RegionRoute::Status => return answer(plane.regions.status(name).map(region_list)),
        RegionRoute::Register => register(plane, name.unwrap_or_default(), request).await,
        RegionRoute::Unregister => plane.regions.unregister(name),
    };
    match outcome {
        Ok(()) => reply::done(),
        Err(error) => reply::error(&error),
    }
}

async fn register(plane: &Arc<DataPlane>, name: &str, request: Request<Incoming>) -> Result<()> {
    #[derive(Deserialize)]
    struct Body {
        key: String,
        #[serde(default)]
        offset: u64,
        byte_size: u64,
    }
    let body = read_body(plane, request).await?;
    let Body { key, offset, byte_size } = serde_json::from_slice(&body).map_err(|error| {
        Error::invalid(format!("a region takes \"key\", \"offset\" and \"byte_size\": {error}"))
    })?;
    plane.regions.register(RegionStatus { name: name.to_owned(), key, offset, byte_size })
}

fn region_list(regions: Vec<RegionStatus>) -> Value {
    let told = |region: RegionStatus| {
        json!({
            "name": region.name,
            "key": region.key,
            "offset": region.offset,
            "byte_size": region.byte_size,
        })
    };
    regions.into_iter().map(told).collect()
}

/// The members of a JSON object; none in an empty body.
fn settings(body: &[u8]) -> Result<Map<String, Value>> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    serde_json::from_slice(body)
        .map_err(|error| Error::invalid(format!("the settings are not a JSON object: {error}")))
}

fn answer(value: Result<Value>) -> Reply {
    match value {
        Ok(value) => reply::json(Bytes::from(value.to_string())),
        Err(error) => reply::error(&error),
    }
}
