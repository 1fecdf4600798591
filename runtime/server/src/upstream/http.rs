//! Another server over HTTP/1.1.

use super::client::{Connector, Over, Question, Reply, cause, connector, unsendable};
use crate::trace;
use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use mortise_deploy::{UpstreamModel, UpstreamTarget};
use mortise_types::{Error, Result};
use mortise_wire::{
    Encoded, NamedTensor, WireLimits, decode_answer, decode_error, decode_extensions,
    decode_metadata, encode_request,
};
use std::time::Duration;

/// Connections that nothing used for so long are closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long bytes of JSON before binary data are, in requests and answers.
const HEADER_LENGTH: &str = "inference-header-content-length";

/// The extension by which a server says that it takes binary tensors.
const BINARY_EXTENSION: &str = "binary_tensor_data";

/// One model of another server. Connections are kept and used again.
pub(super) struct Http {
    http: HyperClient<Connector, Full<Bytes>>,
    scheme: Scheme,
    authority: Authority,
    /// `/v2/models/{m}` or `/v2/models/{m}/versions/{v}`, after what the
    /// address begins with.
    model_path: String,
    prefix: String,
}

/// What came back.
pub(super) struct Answer {
    status: StatusCode,
    /// Bytes of JSON before binary data, when it says.
    header_length: Option<usize>,
    body: Bytes,
}

impl Http {
    /// # Errors
    /// As [`connector`].
    pub(super) fn new(target: &UpstreamTarget, uri: &Uri, authority: Authority) -> Result<Self> {
        let scheme = uri.scheme().cloned().unwrap_or(Scheme::HTTP);
        let http = HyperClient::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(target.max_concurrent)
            .pool_timer(TokioTimer::new())
            .build(connector(target, &scheme, Over::Http1)?);
        let prefix = uri.path().trim_end_matches('/').to_string();
        let model_path = model_path(&target.model, target.version.as_deref());
        Ok(Self { http, scheme, authority, model_path, prefix })
    }

    pub(super) async fn describe(&self) -> Result<UpstreamModel> {
        let about_model = self.get(&self.model_path).await?;
        let about_server = self.get("/v2").await?;
        let extensions = decode_extensions(&about_server.body);
        Ok(UpstreamModel {
            signature: decode_metadata(&about_model.body)?,
            is_binary: extensions.iter().any(|name| name == BINARY_EXTENSION),
        })
    }

    /// # Errors
    /// When the model is not ready.
    pub(super) async fn check_ready(&self) -> Result<()> {
        self.get(&format!("{}/ready", self.model_path)).await.map(drop)
    }

    pub(super) async fn infer(&self, question: Question<'_>) -> Result<Reply> {
        let encoded = encode_request(question.inputs, question.is_binary)?;
        let mut request = self.infer_request(encoded)?;
        trace::write(question.trace, request.headers_mut());
        self.exchange(request).await.map(Reply::Http)
    }

    fn infer_request(&self, encoded: Encoded) -> Result<Request<Full<Bytes>>> {
        let path = format!("{}/infer", self.model_path);
        let mut request = self.request(Method::POST, &path)?;
        request = match encoded.header_length {
            Some(length) => request
                .header(HEADER_LENGTH, length)
                .header(header::CONTENT_TYPE, "application/octet-stream"),
            None => request.header(header::CONTENT_TYPE, "application/json"),
        };
        let body = match <[Bytes; 1]>::try_from(encoded.segments) {
            Ok([only]) => only,
            Err(several) => several.concat().into(),
        };
        request.body(Full::new(body)).map_err(unsendable)
    }

    async fn get(&self, path: &str) -> Result<Answer> {
        let request = self.request(Method::GET, path)?.body(Full::default());
        self.exchange(request.map_err(unsendable)?).await
    }

    fn request(&self, method: Method, path: &str) -> Result<http::request::Builder> {
        let path: PathAndQuery = format!("{}{path}", self.prefix)
            .parse()
            .map_err(|error| Error::invalid(format!("\"{path}\" is no path: {error}")))?;
        let uri = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path)
            .build()
            .map_err(unsendable)?;
        Ok(Request::builder().method(method).uri(uri))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let answer = self.http.request(request).await;
        let answer = answer.map_err(|error| {
            Error::not_ready(format!("it cannot be reached: {}", cause(&error)))
        })?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, super::client::MAX_ANSWER_BYTES).collect().await;
        let body = body
            .map_err(|error| Error::not_ready(format!("it broke off its answer: {error}")))?
            .to_bytes();
        let length = head.headers.get(HEADER_LENGTH).map(HeaderValue::to_str);
        let header_length = length.and_then(|text| text.ok()?.parse().ok());
        Answer { status: head.status, header_length, body }.success()
    }
}

impl Answer {
    /// The answer, if it is one. Where another server would not be asked again
    /// for the same, the error says that it is not ready.
    ///
    /// # Errors
    /// What the server says.
    fn success(self) -> Result<Self> {
        if self.status.is_success() {
            return Ok(self);
        }
        let said = decode_error(&self.body);
        let message = match said.filter(|text| !text.is_empty()) {
            Some(text) => format!("it answers {}: {text}", self.status.as_u16()),
            None => format!("it answers {}", self.status.as_u16()),
        };
        Err(match self.status {
            StatusCode::NOT_FOUND
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Error::not_ready(message),
            status if status.is_client_error() => Error::invalid(message),
            _ => Error::plugin(message),
        })
    }

    pub(super) fn outputs(&self, limits: &WireLimits) -> Result<Vec<NamedTensor>> {
        decode_answer(&self.body, self.header_length, limits)
    }
}

fn model_path(model: &str, version: Option<&str>) -> String {
    let model = crate::cli::client::segment(model);
    match version {
        None => format!("/v2/models/{model}"),
        Some(version) => {
            format!("/v2/models/{model}/versions/{}", crate::cli::client::segment(version))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_have_their_paths() {
        assert_eq!(model_path("a model", Some("2")), "/v2/models/a%20model/versions/2");
        assert_eq!(model_path("m", None), "/v2/models/m");
    }

    #[test]
    fn statuses_say_whether_another_may_answer() {
        use mortise_types::ErrorKind::{InvalidInput, NotReady, PluginFailed};
        let answer = |status| Answer {
            status: StatusCode::from_u16(status).unwrap(),
            header_length: None,
            body: Bytes::from_static(b"{\"error\":\"why\"}"),
        };
        assert!(answer(200).success().is_ok());
        for (status, kind) in [(400, InvalidInput), (503, NotReady), (500, PluginFailed)] {
            let error = answer(status).success().err().unwrap();
            assert_eq!((error.kind(), error.message().contains("why")), (kind, true));
        }
    }
}
