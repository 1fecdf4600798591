//! Another server over gRPC: one connection, on which requests run beside each
//! other.

use super::client::{
    Connector, MAX_ANSWER_BYTES, Over, Question, Reply, cause, connector, unsendable,
};
use crate::trace;
use http::Uri;
use http::uri::{Authority, Scheme};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use mortise_deploy::{UpstreamModel, UpstreamTarget};
use mortise_grpc_proto::inference as pb;
use mortise_grpc_proto::{ModelInferRequest, decode_metadata};
use mortise_types::{Error, Result};
use pb::grpc_inference_service_client::GrpcInferenceServiceClient;
use std::error::Error as _;
use std::time::{Duration, Instant};
use tonic::{Code, Request, Status};

/// How often a silent connection is asked whether it is still there, and how
/// long it may take to say so.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// One model of another server.
pub(super) struct Grpc {
    service: GrpcInferenceServiceClient<HyperClient<Connector, tonic::body::Body>>,
    model: String,
    /// Empty for the live one.
    version: String,
}

impl Grpc {
    /// # Errors
    /// As [`connector`].
    pub(super) fn new(
        target: &UpstreamTarget,
        scheme: Scheme,
        authority: Authority,
    ) -> Result<Self> {
        let channel = HyperClient::builder(TokioExecutor::new())
            .http2_only(true)
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_keep_alive_interval(KEEPALIVE)
            .http2_keep_alive_timeout(KEEPALIVE)
            .build(connector(target, &scheme, Over::Http2)?);
        let origin = Uri::builder().scheme(scheme).authority(authority).path_and_query("/");
        let origin = origin.build().map_err(unsendable)?;
        let service = GrpcInferenceServiceClient::with_origin(channel, origin)
            .max_decoding_message_size(MAX_ANSWER_BYTES)
            .max_encoding_message_size(usize::MAX);
        let version = target.version.clone().unwrap_or_default();
        Ok(Self { service, model: target.model.clone(), version })
    }

    pub(super) async fn describe(&self) -> Result<UpstreamModel> {
        let (name, version) = (self.model.clone(), self.version.clone());
        let asked = pb::ModelMetadataRequest { name, version };
        let told = self.service.clone().model_metadata(asked).await.map_err(failed)?;
        Ok(UpstreamModel { signature: decode_metadata(told.into_inner())?, is_binary: true })
    }

    /// # Errors
    /// When the model is not ready.
    pub(super) async fn check_ready(&self) -> Result<()> {
        let (name, version) = (self.model.clone(), self.version.clone());
        let asked = pb::ModelReadyRequest { name, version };
        let told = self.service.clone().model_ready(asked).await.map_err(failed)?;
        match told.into_inner().ready {
            true => Ok(()),
            false => Err(Error::not_ready(format!("its model \"{}\" is not ready", self.model))),
        }
    }

    /// The server is told how much time there is.
    pub(super) async fn infer(&self, question: Question<'_>, until: Instant) -> Result<Reply> {
        let message = ModelInferRequest::asking(&self.model, &self.version, question.inputs)?;
        let mut request = Request::new(message);
        trace::write(question.trace, request.metadata_mut().as_mut());
        request.set_timeout(until.saturating_duration_since(Instant::now()));
        let reply = self.service.clone().model_infer(request).await.map_err(failed)?;
        Ok(Reply::Grpc(reply.into_inner()))
    }
}

/// Where another server would not be asked again for the same, the error says
/// that it is not ready.
fn failed(status: Status) -> Error {
    // Only what happened to the connection has a cause.
    if let Some(source) = status.source() {
        return Error::not_ready(format!("it cannot be reached: {}", cause(source)));
    }
    let message = format!("it answers {:?}: {}", status.code(), status.message());
    match status.code() {
        Code::NotFound
        | Code::ResourceExhausted
        | Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled => Error::not_ready(message),
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::FailedPrecondition
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::Unimplemented => Error::invalid(message),
        _ => Error::plugin(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_whether_another_may_answer() {
        use mortise_types::ErrorKind::{InvalidInput, NotReady, PluginFailed};
        for (code, kind) in [
            (Code::InvalidArgument, InvalidInput),
            (Code::Unavailable, NotReady),
            (Code::Internal, PluginFailed),
        ] {
            let error = failed(Status::new(code, "why"));
            assert_eq!((error.kind(), error.message().contains("why")), (kind, true));
        }
        let broken = std::io::Error::other("reset");
        assert_eq!(failed(Status::from_error(broken.into())).kind(), NotReady);
    }
}
