//! gRPC over real sockets, with models that compute nothing much.

use super::*;
use crate::app::ShutdownTrigger;
use crate::auth::{ApiKeys, add_key};
use crate::net::Workers;
use crate::plane::{Permits, testing};
use bytes::Bytes;
use http::Uri;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mortise_grpc_proto::inference as pb;
use prost::Message;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{BoxFuture, Service as Call};
use tonic::{Code, Streaming};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1 as reflection;

/// What is sent and read of infer requests; the server's own are write-only.
#[derive(Clone, PartialEq, Message)]
struct Infer {
    #[prost(string, tag = "1")]
    model: String,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(message, repeated, tag = "5")]
    inputs: Vec<Input>,
    #[prost(bytes = "vec", repeated, tag = "7")]
    raw: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Input {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
    #[prost(int64, repeated, tag = "3")]
    shape: Vec<i64>,
    #[prost(message, optional, tag = "5")]
    contents: Option<Contents>,
}

#[derive(Clone, PartialEq, Message)]
struct Contents {
    #[prost(float, repeated, tag = "6")]
    fp32: Vec<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct Inferred {
    #[prost(string, tag = "1")]
    model: String,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(map = "string, message", tag = "4")]
    parameters: std::collections::HashMap<String, pb::InferParameter>,
    #[prost(bytes = "vec", repeated, tag = "6")]
    raw: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Streamed {
    #[prost(string, tag = "1")]
    error: String,
    #[prost(message, optional, tag = "2")]
    inferred: Option<Inferred>,
}

fn typed(model: &str, values: &[f32]) -> Infer {
    let contents = Some(Contents { fp32: values.to_vec() });
    let shape = vec![i64::try_from(values.len()).unwrap()];
    let input = Input { name: "x".into(), datatype: "FP32".into(), shape, contents };
    Infer { model: model.into(), inputs: vec![input], ..Infer::default() }
}

fn raw(model: &str, values: &[f32]) -> Infer {
    let mut request = typed(model, values);
    request.inputs[0].contents = None;
    request.raw = vec![bytes_of(values)];
    request
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A running server; stops when dropped.
struct Running {
    address: SocketAddr,
    plane: Arc<Plane>,
    _stop: ShutdownTrigger,
}

async fn start(permits: Permits, keys: Option<Arc<ApiKeys>>) -> Running {
    let settings = GrpcSettings {
        address: ([127, 0, 0, 1], 0).into(),
        max_message_bytes: 4096,
        request_timeout: Duration::from_secs(20),
        handshake_timeout: Duration::from_millis(300),
        max_connections: 64,
        max_concurrent_calls: 16,
        keepalive_interval: Duration::from_secs(30),
        keepalive_timeout: Duration::from_secs(10),
        drain_delay: Duration::ZERO,
    };
    let plane = testing::plane_for(permits, keys);
    let (trigger, shutdown) = Shutdown::new();
    let server = GrpcServer::new(plane.clone(), settings, shutdown.clone()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let workers = Workers::start(2).unwrap();
    tokio::spawn(serve_grpc(listener, workers, None, Arc::new(server), shutdown));
    Running { address, plane, _stop: trigger }
}

/// A connection as what generated clients are made on.
#[derive(Clone)]
struct Channel(SendRequest<tonic::body::Body>);

impl Call<Request<tonic::body::Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

struct Client {
    grpc: Grpc<Channel>,
    key: Option<String>,
    timeout: Option<Duration>,
}

type Answered<T> = Result<tonic::Response<T>, Status>;

impl Client {
    async fn of(server: &Running) -> Self {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let (sender, connection) =
            handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let origin: Uri = format!("http://{}", server.address).parse().unwrap();
        Self { grpc: Grpc::with_origin(Channel(sender), origin), key: None, timeout: None }
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(key) = &self.key {
            request
                .metadata_mut()
                .insert("authorization", format!("Bearer {key}").parse().unwrap());
        }
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        request
    }

    async fn unary<Q, A>(&mut self, path: &'static str, message: Q) -> Answered<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.grpc.ready().await.unwrap();
        let request = self.request(message);
        let codec = ProstCodec::<Q, A>::default();
        self.grpc.unary(request, PathAndQuery::from_static(path), codec).await
    }

    async fn stream<Q, A>(&mut self, path: &'static str, messages: Vec<Q>) -> Answered<Streaming<A>>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.grpc.ready().await.unwrap();
        let request = self.request(tokio_stream::iter(messages));
        let codec = ProstCodec::<Q, A>::default();
        self.grpc.streaming(request, PathAndQuery::from_static(path), codec).await
    }

    async fn infer(&mut self, request: Infer) -> Answered<Inferred> {
        self.unary("/inference.GRPCInferenceService/ModelInfer", request).await
    }
}

#[tokio::test]
async fn contents_are_raw_or_typed() {
    let server = start(Permits::default(), None).await;
    let mut client = Client::of(&server).await;
    for mut request in [raw("m", &[1.5, -2.0]), typed("m", &[1.5, -2.0])] {
        request.id = "7".into();
        let reply = client.infer(request).await.unwrap();
        assert_eq!(reply.metadata().get("mortise-version").unwrap(), "3");
        assert!(reply.metadata().contains_key("mortise-variant"));
        let reply = reply.into_inner();
        assert_eq!((&*reply.model, &*reply.version, &*reply.id), ("m", "3", "7"));
        assert_eq!(reply.raw, [bytes_of(&[3.0, -4.0])]);
        let version = reply.parameters["version"].parameter_choice.clone();
        assert_eq!(version, Some(pb::infer_parameter::ParameterChoice::Int64Param(3)));
        assert!(reply.parameters.contains_key("variant"));
    }
    let mut both = typed("m", &[1.0]);
    both.raw = vec![bytes_of(&[1.0])];
    assert_eq!(client.infer(both).await.unwrap_err().code(), Code::InvalidArgument);
    let other = Infer { version: "9".into(), ..typed("m", &[1.0]) };
    for (request, code) in [
        (typed("none", &[1.0]), Code::NotFound),
        (other, Code::NotFound),
        (typed("off", &[1.0]), Code::Unavailable),
        (typed("sick", &[1.0]), Code::Unavailable),
        (raw("m", &[0.0; 2000]), Code::OutOfRange),
    ] {
        assert_eq!(client.infer(request.clone()).await.unwrap_err().code(), code, "{request:?}");
    }
    let page = server.plane.observer.render();
    for line in ["{code=\"OK\"} 2", "{code=\"INVALID_ARGUMENT\"} 1", "{code=\"NOT_FOUND\"} 2"] {
        assert!(page.contains(&format!("mortise_grpc_responses_total{line}")), "{page}");
    }
}

#[tokio::test]
async fn deadlines_of_clients_count() {
    let server = start(Permits::default(), None).await;
    let mut client = Client::of(&server).await;
    client.timeout = Some(Duration::from_millis(100));
    let start = Instant::now();
    let late = client.infer(typed("slow", &[1.0])).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_stream_is_answered_in_order() {
    let server = start(Permits::default(), None).await;
    let mut client = Client::of(&server).await;
    let requests: Vec<Infer> = (0..100u8)
        .map(|index| Infer {
            id: index.to_string(),
            ..typed(if index == 50 { "none" } else { "m" }, &[f32::from(index)])
        })
        .collect();
    let path = "/inference.GRPCInferenceService/ModelStreamInfer";
    let mut answers: Streaming<Streamed> =
        client.stream(path, requests).await.unwrap().into_inner();
    for index in 0..100u8 {
        let answer = answers.message().await.unwrap().unwrap();
        let inferred = answer.inferred.unwrap();
        assert_eq!(inferred.id, index.to_string());
        if index == 50 {
            assert!(answer.error.contains("none"), "{}", answer.error);
            continue;
        }
        assert_eq!(answer.error, "");
        assert_eq!(inferred.raw, [bytes_of(&[f32::from(index) * 2.0])]);
        assert!(inferred.parameters.contains_key("triton_final_response"));
    }
    assert_eq!(answers.message().await.unwrap(), None);
}

/// A call whose message comes in two pieces; its `grpc-status`.
async fn infer_in_pieces(server: &Running, message: &Infer) -> Option<String> {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) =
        handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let framed = [&[0], &length[..], &message].concat();
    let (first, second) = framed.split_at(framed.len() / 2);
    let pieces = [first, second].map(Bytes::copy_from_slice);
    let frames = pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    let request = Request::post(format!(
        "http://{}/inference.GRPCInferenceService/ModelInfer",
        server.address
    ))
    .header("content-type", "application/grpc")
    .header("te", "trailers")
    .body(StreamBody::new(tokio_stream::iter(frames)))
    .unwrap();
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    let trailers = body.collect().await.unwrap().trailers().cloned().unwrap_or_default();
    let status = trailers.get("grpc-status").or(head.headers.get("grpc-status"))?;
    Some(status.to_str().unwrap().to_owned())
}

#[tokio::test]
async fn what_is_received_at_once_has_a_bound() {
    let server = start(Permits::default(), None).await;
    let message = raw("m", &[1.0; 100]);
    let ok = Some("0".to_owned());
    assert_eq!(infer_in_pieces(&server, &message).await, ok);
    let mut others = server.plane.receiving.share();
    others.hold(1 << 20).unwrap();
    let unavailable = (Code::Unavailable as i32).to_string();
    assert_eq!(infer_in_pieces(&server, &message).await, Some(unavailable));
    others.hold((1 << 20) - message.encoded_len()).unwrap();
    // What was refused is given back.
    for _ in 0..3 {
        assert_eq!(infer_in_pieces(&server, &message).await, ok);
    }
}

#[tokio::test]
async fn models_are_described() {
    let server = start(Permits::default(), None).await;
    let mut client = Client::of(&server).await;
    let about = pb::ServerMetadataRequest {};
    let told: pb::ServerMetadataResponse = client
        .unary("/inference.GRPCInferenceService/ServerMetadata", about)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(told.extensions, server.plane.extensions());
    assert!(told.extensions.iter().any(|name| name == "system_shared_memory"));

    let about = pb::ModelMetadataRequest { name: "m".into(), version: String::new() };
    let told: pb::ModelMetadataResponse = client
        .unary("/inference.GRPCInferenceService/ModelMetadata", about)
        .await
        .unwrap()
        .into_inner();
    assert_eq!((told.versions, told.inputs[0].shape.clone()), (vec!["3".to_owned()], vec![-1]));

    let about = pb::ModelConfigRequest { name: "m".into(), version: "3".into() };
    let told: pb::ModelConfigResponse = client
        .unary("/inference.GRPCInferenceService/ModelConfig", about)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(told.config.unwrap().output[0].name, "y");

    for (name, want) in [("m", true), ("sick", false), ("off", false), ("none", false)] {
        let about = pb::ModelReadyRequest { name: name.into(), version: String::new() };
        let told: pb::ModelReadyResponse = client
            .unary("/inference.GRPCInferenceService/ModelReady", about)
            .await
            .unwrap()
            .into_inner();
        assert_eq!(told.ready, want, "{name}");
    }

    client.infer(typed("m", &[1.0])).await.unwrap();
    let about = pb::ModelStatisticsRequest { name: "m".into(), version: String::new() };
    let told: pb::ModelStatisticsResponse = client
        .unary("/inference.GRPCInferenceService/ModelStatistics", about)
        .await
        .unwrap()
        .into_inner();
    let counts = told.model_stats[0].inference_stats.unwrap();
    assert_eq!((told.model_stats[0].inference_count, counts.success.unwrap().count), (1, 1));

    let about = pb::RepositoryIndexRequest { ready: true, ..pb::RepositoryIndexRequest::default() };
    let told: pb::RepositoryIndexResponse = client
        .unary("/inference.GRPCInferenceService/RepositoryIndex", about)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(told.models.iter().map(|model| &*model.name).collect::<Vec<_>>(), ["m", "slow"]);
}

#[tokio::test]
async fn control_needs_a_permit() {
    let load = || pb::RepositoryModelLoadRequest {
        model_name: "m".into(),
        ..pb::RepositoryModelLoadRequest::default()
    };
    let set = || {
        let value = pb::trace_setting_request::SettingValue { value: vec!["5".into()] };
        pb::TraceSettingRequest {
            settings: [("trace_rate".to_owned(), value)].into(),
            model_name: String::new(),
        }
    };
    let (load_path, set_path) = (
        "/inference.GRPCInferenceService/RepositoryModelLoad",
        "/inference.GRPCInferenceService/TraceSetting",
    );
    let all = Permits { repository_control: true, settings_control: true };
    for (permits, loaded, set_to) in [
        (Permits::default(), Code::PermissionDenied, Code::PermissionDenied),
        // Nothing is traced here, whoever asks.
        (all, Code::Ok, Code::Unimplemented),
    ] {
        let server = start(permits, None).await;
        let mut client = Client::of(&server).await;
        let answer: Answered<pb::RepositoryModelLoadResponse> =
            client.unary(load_path, load()).await;
        assert_eq!(answer.map_or_else(|status| status.code(), |_| Code::Ok), loaded);
        let answer: Answered<pb::TraceSettingResponse> = client.unary(set_path, set()).await;
        assert_eq!(answer.map_or_else(|status| status.code(), |_| Code::Ok), set_to);
    }
}

#[tokio::test]
async fn keys_open_all_but_probes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let key = add_key(&path, "ann").unwrap();
    let server = start(Permits::default(), Some(ApiKeys::load(path).unwrap())).await;
    let mut client = Client::of(&server).await;
    let check = |service: &str| HealthCheckRequest { service: service.into() };
    let health = "/grpc.health.v1.Health/Check";
    let alive: Answered<pb::ServerLiveResponse> =
        client.unary("/inference.GRPCInferenceService/ServerLive", pb::ServerLiveRequest {}).await;
    assert!(alive.unwrap().into_inner().live);
    let healthy: Answered<HealthCheckResponse> = client.unary(health, check("")).await;
    assert_eq!(healthy.unwrap().into_inner().status, 1);
    // Neither which models there are nor anything else is for everybody.
    let refused: Answered<HealthCheckResponse> = client.unary(health, check("m")).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    let refused = client.infer(typed("m", &[1.0])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("Authorization: Bearer"), "{refused}");
    client.key = Some(format!("{key}x"));
    assert_eq!(client.infer(typed("m", &[1.0])).await.unwrap_err().code(), Code::Unauthenticated);
    client.key = Some(key);
    client.infer(typed("m", &[1.0])).await.unwrap();
    for (service, want) in [("m", 1), ("sick", 2), (INFERENCE, 1)] {
        let healthy: Answered<HealthCheckResponse> = client.unary(health, check(service)).await;
        assert_eq!(healthy.unwrap().into_inner().status, want, "{service}");
    }
    let unknown: Answered<HealthCheckResponse> = client.unary(health, check("none")).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn services_are_listed() {
    let server = start(Permits::default(), None).await;
    let mut client = Client::of(&server).await;
    let list = reflection::server_reflection_request::MessageRequest::ListServices(String::new());
    let ask =
        reflection::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let mut answers: Streaming<reflection::ServerReflectionResponse> =
        client.stream(path, vec![ask]).await.unwrap().into_inner();
    let text = format!("{:?}", answers.message().await.unwrap().unwrap());
    for service in [INFERENCE, REPOSITORY, HEALTH] {
        assert!(text.contains(service), "{service} is not in {text}");
    }
}

#[tokio::test]
async fn what_is_no_call_is_refused() {
    let server = start(Permits::default(), None).await;
    let mut client = Client::of(&server).await;
    for path in ["/inference.GRPCInferenceService/None", "/none.Service/None"] {
        let refused: Answered<Inferred> = client.unary(path, typed("m", &[1.0])).await;
        assert_eq!(refused.unwrap_err().code(), Code::Unimplemented, "{path}");
    }
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for said in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), b"PR", b""] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut read = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut read));
        // An end or a reset, and nothing said.
        drop(end.await.expect("the connection stays open"));
        assert_eq!(read, b"");
    }
}
