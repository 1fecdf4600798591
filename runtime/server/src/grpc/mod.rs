//! The data plane over gRPC. hyper speaks HTTP/2; messages and services are
//! generated; what they mean is in `plane`.

mod health;
mod infer;
mod listen;
mod receive;
mod repository;
mod service;
mod settings;
mod statistics;
mod stream;
#[cfg(test)]
mod tests;

pub(crate) use listen::serve_grpc;

use crate::app::Shutdown;
use crate::config::GrpcSettings;
use crate::plane::Plane;
use crate::status::grpc_status;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use mortise_grpc_proto::DESCRIPTORS;
use mortise_grpc_proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use mortise_grpc_proto::inference::model_repository::model_repository_service_server::ModelRepositoryServiceServer;
use mortise_types::Error;
use receive::CallMessages;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;
use tonic::Status;
use tonic::codec::CompressionEncoding::{Deflate, Gzip};
use tonic::server::NamedService;
use tonic_health::pb::health_server::HealthServer;

type Reply = Response<tonic::body::Body>;
type Answer = Pin<Box<dyn Future<Output = Result<Reply, Infallible>> + Send>>;

/// A service of which each call gets its own copy, made of shared parts.
type Handler = Box<dyn Fn(Request<CallMessages>) -> Answer + Send + Sync>;

/// What answers calls.
pub(crate) struct GrpcServer {
    settings: GrpcSettings,
    plane: Arc<Plane>,
    /// Answers as it was asked, uncompressed.
    inference: Handler,
    /// Compresses its answers.
    compressing: Handler,
    repository: Handler,
    health: Handler,
    reflection: [(&'static str, Handler); 2],
}

/// What the implementations of the services share.
#[derive(Clone)]
struct Service {
    plane: Arc<Plane>,
    settings: GrpcSettings,
    /// Ends streams when the server stops.
    stopping: Shutdown,
}

const INFERENCE: &str = "inference.GRPCInferenceService";
const REPOSITORY: &str = "inference.model_repository.ModelRepositoryService";
const HEALTH: &str = "grpc.health.v1.Health";

impl GrpcServer {
    /// # Errors
    /// Never in practice: the descriptors are those of the build.
    pub(crate) fn new(
        plane: Arc<Plane>,
        settings: GrpcSettings,
        stopping: Shutdown,
    ) -> anyhow::Result<Self> {
        let service =
            Arc::new(Service { plane: plane.clone(), settings: settings.clone(), stopping });
        let inference = GrpcInferenceServiceServer::from_arc(service.clone())
            .accept_compressed(Gzip)
            .accept_compressed(Deflate)
            .max_decoding_message_size(settings.max_message_bytes)
            .max_encoding_message_size(usize::MAX);
        let compressing = inference.clone().send_compressed(Gzip).send_compressed(Deflate);
        let repository = ModelRepositoryServiceServer::from_arc(service.clone());
        let health = HealthServer::from_arc(service);
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        Ok(Self {
            settings,
            plane,
            inference: handler(inference),
            compressing: handler(compressing),
            repository: handler(repository),
            health: handler(health),
            reflection: [named(reflection().build_v1()?), named(reflection().build_v1alpha()?)],
        })
    }

    /// Answers one call. The time that a client takes to send what it asks is
    /// bounded here; streams have no end of their own.
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        let reply = self.answer_in_time(request).await;
        // A call that fails says so in its head; a stream says it later.
        let code = reply.headers().get("grpc-status").and_then(|code| code.to_str().ok());
        let code = code.map_or(Some(0), |code| code.parse().ok());
        self.plane.observer.grpc.responded(code.unwrap_or(tonic::Code::Unknown as usize));
        reply
    }

    async fn answer_in_time(&self, request: Request<Incoming>) -> Reply {
        let latest = Instant::now() + self.settings.request_timeout;
        let is_bounded = !takes_its_time(request.uri().path());
        let messages = |body| CallMessages::new(body, &self.plane.receiving);
        let answer = self.dispatch(request.map(messages));
        let answered = match is_bounded {
            true => tokio::time::timeout_at(latest.into(), answer).await,
            false => Ok(answer.await),
        };
        let Ok(reply) = answered else {
            let late = Error::deadline("the deadline passed before the request was answered");
            return grpc_status(&late).into_http();
        };
        // Calls that fail do so in an answer, never as an error of the service.
        reply.unwrap_or_else(|never| match never {})
    }

    fn dispatch(&self, mut request: Request<CallMessages>) -> Answer {
        if !is_grpc(request.headers()) {
            return ready(not_grpc());
        }
        if let Some(keys) = &self.plane.keys {
            match keys.check(request.headers()) {
                Ok(client) => drop(request.extensions_mut().insert(client)),
                Err(_) if is_open(request.uri().path()) => {}
                Err(denied) => {
                    return ready(Status::unauthenticated(denied.message()).into_http());
                }
            }
        }
        let path = request.uri().path();
        let service = path.strip_prefix('/').and_then(|path| path.split_once('/'));
        match service.map(|(service, _method)| service) {
            Some(INFERENCE) if is_compressed(request.headers()) => (self.compressing)(request),
            Some(INFERENCE) => (self.inference)(request),
            Some(HEALTH) => (self.health)(request),
            Some(REPOSITORY) => (self.repository)(request),
            Some(name) => match self.reflection.iter().find(|(known, _)| *known == name) {
                Some((_, handler)) => handler(request),
                None => ready(unknown(path).into_http()),
            },
            None => ready(unknown(path).into_http()),
        }
    }
}

fn handler<S>(service: S) -> Handler
where
    S: tonic::codegen::Service<
            Request<CallMessages>,
            Response = Reply,
            Error = Infallible,
            Future = tonic::codegen::BoxFuture<Reply, Infallible>,
        > + Clone
        + Send
        + Sync
        + 'static,
{
    Box::new(move |request| service.clone().call(request))
}

fn named<S>(service: S) -> (&'static str, Handler)
where
    S: NamedService
        + tonic::codegen::Service<
            Request<CallMessages>,
            Response = Reply,
            Error = Infallible,
            Future = tonic::codegen::BoxFuture<Reply, Infallible>,
        > + Clone
        + Send
        + Sync
        + 'static,
{
    (S::NAME, handler(service))
}

fn ready(reply: Reply) -> Answer {
    Box::pin(std::future::ready(Ok(reply)))
}

/// What is answered without an API key: probes have none.
fn is_open(path: &str) -> bool {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/'))
    else {
        return false;
    };
    service == HEALTH || service == INFERENCE && matches!(method, "ServerLive" | "ServerReady")
}

/// Loads take as long as they take.
fn takes_its_time(path: &str) -> bool {
    path.ends_with("/RepositoryModelLoad") || path.ends_with("/RepositoryModelUnload")
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    content_type.is_some_and(|value| value.starts_with(b"application/grpc"))
}

/// A client that compresses what it sends gets compressed answers. Most accept
/// them without wanting them: to compress small tensors costs more than it
/// saves.
fn is_compressed(headers: &HeaderMap) -> bool {
    headers.get("grpc-encoding").is_some_and(|value| value != "identity")
}

fn unknown(path: &str) -> Status {
    let path: String = path.chars().take(128).collect();
    Status::unimplemented(format!("no such method {path:?}"))
}

/// For browsers and others that speak no gRPC.
fn not_grpc() -> Reply {
    let mut reply = Response::new(tonic::body::Body::empty());
    *reply.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    reply
}
