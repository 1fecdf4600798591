//! `POST /v1/endpoints/{name}/deploy`: the body names finished uploads; the
//! answer is a line of JSON for each stage and one for the end.

use super::rollouts::RolloutBody;
use super::stages::StageEvent;
use super::traffic::BesideBody;
use super::{Admin, error_json, json_error, read_json};
use crate::control::Reply;
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use mortise_deploy::serving::ServingInfo;
use mortise_deploy::{
    DeployRequest, Deployed, Failure, NamedUpload, PluginRef, QuantizeMode, QuantizeRequest, Stage,
    TestUpload, TransformRequest,
};
use mortise_types::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::{broadcast, mpsc};

/// Lines that wait for a client that reads slowly.
const LINES_IN_FLIGHT: usize = 32;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeployBody {
    plugin: PluginBody,
    version: Option<u64>,
    #[serde(default)]
    assets: Vec<FileBody>,
    #[serde(default)]
    config: Map<String, Value>,
    #[serde(default)]
    transforms: Vec<TransformBody>,
    tests: Option<TestsBody>,
    #[serde(default)]
    serving: ServingInfo,
    quantize: Option<QuantizeBody>,
    rollout: Option<RolloutBody>,
    beside: Option<BesideBody>,
}

/// A first-party plugin by name, an upload, or another server.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PluginBody {
    name: String,
    upload: Option<String>,
    /// The address of another server, for the plugin `upstream`.
    url: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileBody {
    name: String,
    upload: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TransformBody {
    plugin: PluginBody,
    #[serde(default)]
    assets: Vec<FileBody>,
    #[serde(default)]
    config: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuantizeBody {
    mode: QuantizeMode,
    samples: Option<FileBody>,
    max_error: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TestsBody {
    upload: String,
    #[serde(default)]
    data: Vec<FileBody>,
}

pub(super) async fn deploy(admin: Arc<Admin>, name: &str, who: String, body: Incoming) -> Reply {
    let request = match read_json::<DeployBody>(body).await {
        Ok(body) => body.into_request(&admin, name, who),
        Err(error) => Err(error),
    };
    match request {
        Ok(request) => stream(admin, request),
        Err(error) => json_error(&error),
    }
}

impl DeployBody {
    fn into_request(self, admin: &Admin, name: &str, who: String) -> Result<DeployRequest> {
        let transform = |transform: TransformBody| {
            Ok(TransformRequest {
                plugin: transform.plugin.resolve(admin)?,
                assets: files(admin, transform.assets)?,
                config: transform.config,
            })
        };
        let tests = |tests: TestsBody| -> Result<TestUpload> {
            Ok(TestUpload {
                file: admin.uploads.take(&tests.upload)?,
                data: files(admin, tests.data)?,
            })
        };
        let quantize = |body: QuantizeBody| -> Result<QuantizeRequest> {
            let samples = files(admin, body.samples.into_iter().collect())?.pop();
            Ok(QuantizeRequest { mode: body.mode, samples, max_error: body.max_error })
        };
        Ok(DeployRequest {
            name: name.to_string(),
            plugin: self.plugin.resolve(admin)?,
            version: self.version,
            assets: files(admin, self.assets)?,
            config: self.config,
            transforms: self.transforms.into_iter().map(transform).collect::<Result<_>>()?,
            tests: self.tests.map(tests).transpose()?,
            serving: self.serving,
            quantize: self.quantize.map(quantize).transpose()?,
            rollout: self.rollout.map(|rollout| rollout.into_request(admin)).transpose()?,
            beside: self.beside.map(|beside| beside.into_request(admin)).transpose()?,
            who,
        })
    }
}

impl PluginBody {
    pub(super) fn resolve(self, admin: &Admin) -> Result<PluginRef> {
        Ok(match (self.url, self.upload) {
            (Some(url), None) if self.name == "upstream" => PluginRef::Upstream { url },
            (Some(_), _) => {
                return Err(Error::invalid(
                    "only the plugin \"upstream\" has a url, and no upload",
                ));
            }
            (None, None) => PluginRef::Builtin(self.name),
            (None, Some(id)) if self.name == "ensemble" => {
                PluginRef::Ensemble { file: admin.uploads.take(&id)? }
            }
            (None, Some(id)) => {
                PluginRef::Uploaded { name: self.name, component: admin.uploads.take(&id)? }
            }
        })
    }
}

fn files(admin: &Admin, files: Vec<FileBody>) -> Result<Vec<NamedUpload>> {
    let take = |file: FileBody| {
        Ok(NamedUpload { upload: admin.uploads.take(&file.upload)?, name: file.name })
    };
    files.into_iter().map(take).collect()
}

/// Starts the deployment and answers with its events as they happen. It goes
/// on when the client leaves.
fn stream(admin: Arc<Admin>, request: DeployRequest) -> Reply {
    let (lines, inbox) = mpsc::channel(LINES_IN_FLIGHT);
    tokio::spawn(async move {
        let events = admin.stages.subscribe();
        let name = request.name.clone();
        let deployer = admin.app.deployer.clone();
        let work = tokio::task::spawn_blocking(move || deployer.deploy(request));
        follow(&name, events, work, lines).await;
    });
    let mut reply = Response::new(Lines(inbox).boxed());
    let ndjson = HeaderValue::from_static("application/x-ndjson");
    reply.headers_mut().insert(header::CONTENT_TYPE, ndjson);
    reply
}

async fn follow(
    name: &str,
    mut events: broadcast::Receiver<StageEvent>,
    mut work: tokio::task::JoinHandle<Result<Deployed, Failure>>,
    lines: mpsc::Sender<Bytes>,
) {
    let end = loop {
        tokio::select! {
            // Stages first, so that they stand before the end.
            biased;
            Ok(event) = events.recv() => {
                if event.endpoint == name && Stage::DEPLOYMENT.contains(&event.stage) {
                    send(&lines, &json!({"event": "stage", "stage": event.stage})).await;
                }
            }
            done = &mut work => break done,
        }
    };
    let last = match end {
        Ok(Ok(deployed)) => json!({"event": "deployed", "deployed": deployed}),
        Ok(Err(failure)) => failure_json(&failure),
        Err(_) => failed_json(&Error::internal("the deployment broke down; see the server's log")),
    };
    send(&lines, &last).await;
}

fn failure_json(failure: &Failure) -> Value {
    let mut line = failed_json(&Error::from(failure.clone()));
    line["stage"] = json!(failure.stage);
    line["reason"] = json!(failure.reason.message());
    line["stages"] = json!(failure.stages);
    line
}

fn failed_json(error: &Error) -> Value {
    let mut line = error_json(error);
    line["event"] = json!("failed");
    line["status"] = json!(crate::status::http_status(error.kind()).as_u16());
    line
}

async fn send(lines: &mpsc::Sender<Bytes>, line: &Value) {
    // A client that left is no reason to stop the deployment.
    let _ = lines.send(Bytes::from(format!("{line}\n"))).await;
}

/// A body of lines that arrive over time.
struct Lines(mpsc::Receiver<Bytes>);

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}
