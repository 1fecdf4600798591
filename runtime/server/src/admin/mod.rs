//! The admin API: deployments and their state, behind a bearer token, on a
//! listener of its own.
//!
//! | request | does |
//! |---|---|
//! | `POST /v1/uploads` | streams the body to disk: `{"upload","digest","size_bytes"}` |
//! | `POST /v1/endpoints/{name}/deploy` | deploys uploads; answers in lines, one a stage |
//! | `DELETE /v1/endpoints/{name}` | takes an endpoint out of service |
//! | `POST /v1/endpoints/{name}/rollback`, `/load`, `/unload` | |
//! | `GET /v1/endpoints/{name}/rollout` | the rollout under way, or the last |
//! | `POST /v1/endpoints/{name}/rollout/pause`, `/resume`, `/promote`, `/abort`, `/weight`, `/strategy` | |
//! | `POST /v1/endpoints/{name}/metrics` | `[{"version","metric","value"}]` about answers |
//! | `GET /v1/endpoints`, `/v1/endpoints/{name}` | state of all, of one |
//! | `GET /v1/endpoints/{name}/graph` | what the live revision runs, operator by operator |
//! | `GET /v1/endpoints/{name}/revisions`, `/versions` | newest first |
//! | `GET /v1/audit?endpoint=&before_id=&limit=` | who did what, newest first |
//! | `GET /v1/status` | the server, its addresses and its store |
//! | `POST /v1/gc` | removes versions and files that nothing needs |
//!
//! Errors are `{"error": …, "hint": …}`.

mod deploy;
mod rollouts;
mod stages;
mod token;
mod traffic;
mod uploads;

pub(crate) use stages::StageFeed;
pub(crate) use token::{Token, write_private};

use crate::app::App;
use crate::control::{Handler, Reply, reply};
use crate::status::http_status;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use mortise_deploy::{AuditQuery, Deployer};
use mortise_types::{Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;
use uploads::Uploads;

const JSON: &str = "application/json";

/// Largest JSON body of a request; files go through uploads.
const MAX_JSON_BYTES: usize = 4 << 20;

/// Longest name of who asks, for the audit log.
const MAX_WHO_CHARS: usize = 128;

/// What the admin listener answers from.
pub(crate) struct Admin {
    app: Arc<App>,
    token: Token,
    uploads: Uploads,
    stages: Arc<StageFeed>,
    /// Where the listeners are, as told by `/v1/status`.
    addresses: Value,
}

impl Admin {
    pub(crate) fn new(
        app: Arc<App>,
        token: Token,
        stages: Arc<StageFeed>,
        addresses: Value,
    ) -> Arc<Self> {
        let settings = &app.config.admin;
        let uploads = Uploads::new(settings.max_pending_uploads, settings.pending_upload_timeout);
        Arc::new(Self { app, token, uploads, stages, addresses })
    }

    fn is_authorised(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = given.and_then(|text| text.strip_prefix("Bearer "));
        token.is_some_and(|token| self.token.matches(token.trim()))
    }
}

impl Handler for Admin {
    async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Reply {
        if !self.is_authorised(request.headers()) {
            return unauthorised();
        }
        let (head, body) = request.into_parts();
        let who = who(&head.headers);
        let path = head.uri.path().to_string();
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let query = head.uri.query().unwrap_or_default();
        match (&head.method, segments.as_slice()) {
            (&Method::POST, ["v1", "uploads"]) => upload(&self, body).await,
            (&Method::POST, ["v1", "endpoints", name, "deploy"]) => {
                deploy::deploy(self.clone(), name, who, body).await
            }
            (method, ["v1", "endpoints", name, "rollout", rest @ ..]) => {
                rollouts::rollout(self.clone(), method, (*name, rest), who, body).await
            }
            (method, ["v1", "endpoints", name, "traffic", rest @ ..]) => {
                traffic::traffic(self.clone(), method, (*name, rest), who, body).await
            }
            (&Method::POST, ["v1", "endpoints", name, "metrics"]) => {
                rollouts::metrics(self.clone(), name, who, body).await
            }
            (method, segments) => match Action::parse(method, segments, query, who) {
                Ok(action) => self.run(action).await,
                Err(error) => json_error(&error),
            },
        }
    }
}

/// A request that blocks on the deployer and answers with one JSON value.
enum Action {
    Status,
    List,
    Describe(String),
    Inspect(String),
    Revisions(String),
    Versions(String),
    Audit(AuditQuery),
    Gc { who: String },
    Undeploy { name: String, who: String },
    Rollback { name: String, who: String },
    Load { name: String, who: String },
    Unload { name: String, who: String },
}

impl Action {
    fn parse(method: &Method, segments: &[&str], query: &str, who: String) -> Result<Self> {
        let own = |name: &&str| name.to_string();
        Ok(match (method, segments) {
            (&Method::GET, ["v1", "status"]) => Self::Status,
            (&Method::GET, ["v1", "endpoints"]) => Self::List,
            (&Method::GET, ["v1", "endpoints", name]) => Self::Describe(own(name)),
            (&Method::GET, ["v1", "endpoints", name, "graph"]) => Self::Inspect(own(name)),
            (&Method::GET, ["v1", "endpoints", name, "revisions"]) => Self::Revisions(own(name)),
            (&Method::GET, ["v1", "endpoints", name, "versions"]) => Self::Versions(own(name)),
            (&Method::GET, ["v1", "audit"]) => Self::Audit(audit_query(query)?),
            (&Method::POST, ["v1", "gc"]) => Self::Gc { who },
            (&Method::DELETE, ["v1", "endpoints", name]) => Self::Undeploy { name: own(name), who },
            (&Method::POST, ["v1", "endpoints", name, "rollback"]) => {
                Self::Rollback { name: own(name), who }
            }
            (&Method::POST, ["v1", "endpoints", name, "load"]) => {
                Self::Load { name: own(name), who }
            }
            (&Method::POST, ["v1", "endpoints", name, "unload"]) => {
                Self::Unload { name: own(name), who }
            }
            _ => {
                let path = segments.join("/");
                return Err(Error::not_found(format!("the admin API has no {method} /{path}")));
            }
        })
    }
}

impl Admin {
    async fn run(self: &Arc<Self>, action: Action) -> Reply {
        let admin = self.clone();
        let outcome = tokio::task::spawn_blocking(move || admin.run_blocking(action)).await;
        match outcome.unwrap_or_else(|_| Err(Error::internal("the request broke down"))) {
            Ok(value) => json_reply(StatusCode::OK, &value),
            Err(error) => json_error(&error),
        }
    }

    fn run_blocking(&self, action: Action) -> Result<Value> {
        let deployer: &Deployer = &self.app.deployer;
        match action {
            Action::Status => self.status(),
            Action::List => to_json(&deployer.status()?),
            Action::Describe(name) => to_json(&deployer.describe(&name)?),
            Action::Inspect(name) => to_json(&deployer.inspect(&name)?),
            Action::Revisions(name) => to_json(&deployer.revisions(&name)?),
            Action::Versions(name) => to_json(&deployer.versions(&name)?),
            Action::Audit(query) => to_json(&deployer.audit(&query)?),
            Action::Gc { who } => to_json(&deployer.gc(&who)?),
            Action::Undeploy { name, who } => to_json(&deployer.undeploy(&name, &who)?),
            Action::Rollback { name, who } => to_json(&deployer.rollback(&name, &who)?),
            Action::Load { name, who } => to_json(&deployer.load(&name, &who)?),
            Action::Unload { name, who } => to_json(&deployer.unload(&name, &who)?),
        }
    }

    fn status(&self) -> Result<Value> {
        let draining: Vec<Value> = self
            .app
            .registry
            .draining()
            .into_iter()
            .map(|old| {
                json!({
                    "endpoint": old.endpoint,
                    "revision": old.number,
                    "version": old.version,
                    "request_count": old.request_count,
                })
            })
            .collect();
        Ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "ready": self.app.is_ready(),
            "addresses": self.addresses,
            "store": to_json(&self.app.deployer.store_status()?)?,
            "draining": draining,
        }))
    }
}

async fn upload(admin: &Admin, body: Incoming) -> Reply {
    let received = uploads::receive(admin.app.deployer.clone(), body).await;
    let kept = received.and_then(|upload| {
        let (digest, size_bytes) = (upload.digest().to_string(), upload.size_bytes());
        let id = admin.uploads.keep(upload)?;
        Ok(json!({"upload": id, "digest": digest, "size_bytes": size_bytes}))
    });
    match kept {
        Ok(value) => json_reply(StatusCode::OK, &value),
        Err(error) => json_error(&error),
    }
}

fn audit_query(query: &str) -> Result<AuditQuery> {
    let mut parsed = AuditQuery::default();
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let wrong = |_| Error::invalid(format!("{key} must be a number, got \"{value}\""));
        match key {
            "endpoint" => parsed.endpoint = Some(value.to_string()),
            "before_id" => parsed.before_id = Some(value.parse().map_err(wrong)?),
            "limit" => parsed.limit = value.parse().map_err(wrong)?,
            _ => return Err(Error::invalid(format!("unknown query parameter \"{key}\""))),
        }
    }
    Ok(parsed)
}

/// Who asks, as the client tells it: for the audit log, not for access.
fn who(headers: &HeaderMap) -> String {
    let given = headers.get("mortise-who").and_then(|value| value.to_str().ok());
    given.unwrap_or("admin API").chars().take(MAX_WHO_CHARS).collect()
}

async fn read_json<T: DeserializeOwned>(body: Incoming) -> Result<T> {
    from_json(&read_body(body).await?)
}

/// As [`read_json`], where a body may be left out.
async fn read_json_or_default<T: DeserializeOwned + Default>(body: Incoming) -> Result<T> {
    match read_body(body).await? {
        body if body.is_empty() => Ok(T::default()),
        body => Ok(from_json::<Option<T>>(&body)?.unwrap_or_default()),
    }
}

async fn read_body(body: Incoming) -> Result<Bytes> {
    let body = Limited::new(body, MAX_JSON_BYTES).collect().await.map_err(|error| {
        Error::too_large(format!(
            "cannot read the JSON body (at most {MAX_JSON_BYTES} bytes): {error}"
        ))
    })?;
    Ok(body.to_bytes())
}

fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body)
        .map_err(|error| Error::invalid(format!("the JSON body does not fit: {error}")))
}

fn to_json(value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|error| Error::internal(error.to_string()))
}

fn json_reply(status: StatusCode, value: &Value) -> Reply {
    reply(status, JSON, Bytes::from(format!("{value}\n")))
}

fn json_error(error: &Error) -> Reply {
    json_reply(http_status(error.kind()), &error_json(error))
}

fn error_json(error: &Error) -> Value {
    json!({"error": error.message(), "hint": hint(error.kind())})
}

fn hint(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::NotFound => Some("`mortise status` lists what is deployed"),
        ErrorKind::Overloaded => Some("free the resource that is named, then try again"),
        ErrorKind::TooLarge => {
            Some("the bounds are in mortise.toml: `mortise serve --print-config`")
        }
        ErrorKind::LimitExceeded => {
            Some("the bounds of plugins are in mortise.toml under [plugins]")
        }
        ErrorKind::Internal => Some("the server's log has the details"),
        // What collides says itself with what, and how that ends.
        _ => None,
    }
}

fn unauthorised() -> Reply {
    let value = json!({
        "error": "the admin API needs a bearer token",
        "hint": "pass --token, set MORTISE_TOKEN, or --store to the server's store directory",
    });
    json_reply(StatusCode::UNAUTHORIZED, &value)
}
