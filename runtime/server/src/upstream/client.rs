use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use mortise_deploy::UpstreamTarget;
use mortise_types::{Error, Result};
use mortise_wire::{Encoded, decode_error};
use std::error::Error as _;
use std::time::{Duration, Instant};

/// Bytes of one answer.
const MAX_ANSWER_BYTES: usize = 1 << 30;

/// Connections that nothing used for so long are closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long bytes of JSON before binary data are, in requests and answers.
const HEADER_LENGTH: &str = "inference-header-content-length";

/// One model of another server. Connections are kept and used again.
pub(super) struct Client {
    http: HyperClient<HttpConnector, Full<Bytes>>,
    authority: Authority,
    /// `/v2/models/{m}` or `/v2/models/{m}/versions/{v}`, after what the
    /// address begins with.
    model_path: String,
    prefix: String,
    timeout: Duration,
    /// `http://host:port`, for messages.
    url: String,
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// Bytes of JSON before binary data, when it says.
    pub(super) header_length: Option<usize>,
    pub(super) body: Bytes,
}

impl Client {
    /// # Errors
    /// `InvalidInput` when the address is none, `Unsupported` when it is not
    /// plain HTTP.
    pub(super) fn new(target: &UpstreamTarget) -> Result<Self> {
        let uri: Uri = target.url.parse().map_err(|error| {
            Error::invalid(format!("\"{}\" is not an address: {error}", target.url))
        })?;
        if uri.scheme() != Some(&Scheme::HTTP) {
            return Err(Error::unsupported(format!(
                "\"{}\": an upstream is reached over plain HTTP; write http://HOST:PORT",
                target.url
            )));
        }
        let authority = uri.authority().cloned();
        let authority =
            authority.ok_or_else(|| Error::invalid(format!("\"{}\" names no host", target.url)))?;
        let timeout = Duration::from_millis(target.timeout_ms);
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(timeout));
        let http = HyperClient::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(target.max_concurrent)
            .pool_timer(TokioTimer::new())
            .build(connector);
        let prefix = uri.path().trim_end_matches('/').to_string();
        let model_path = model_path(&target.model, target.version.as_deref());
        Ok(Self { http, authority, model_path, prefix, timeout, url: target.url.clone() })
    }

    pub(super) fn model_path(&self) -> &str {
        &self.model_path
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) async fn get(&self, path: &str, deadline: Instant) -> Result<Answer> {
        let request = self.request(Method::GET, path)?.body(Full::default());
        self.send(request.map_err(unsendable)?, deadline).await
    }

    pub(super) async fn infer(&self, encoded: Encoded, deadline: Instant) -> Result<Answer> {
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
        self.send(request.body(Full::new(body)).map_err(unsendable)?, deadline).await
    }

    fn request(&self, method: Method, path: &str) -> Result<http::request::Builder> {
        let path: PathAndQuery = format!("{}{path}", self.prefix)
            .parse()
            .map_err(|error| Error::invalid(format!("\"{path}\" is no path: {error}")))?;
        let uri = Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(self.authority.clone())
            .path_and_query(path)
            .build()
            .map_err(unsendable)?;
        Ok(Request::builder().method(method).uri(uri))
    }

    /// The whole answer, in the time that one may take.
    async fn send(&self, request: Request<Full<Bytes>>, deadline: Instant) -> Result<Answer> {
        let own = Instant::now() + self.timeout;
        let answer = tokio::time::timeout_at(own.min(deadline).into(), self.exchange(request));
        match answer.await {
            Ok(answer) => answer,
            Err(_) if deadline < own => {
                Err(Error::deadline(format!("{} did not answer before the deadline", self.url)))
            }
            Err(_) => Err(Error::not_ready(format!(
                "{} did not answer within timeout_ms = {}",
                self.url,
                self.timeout.as_millis()
            ))),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let answer = self.http.request(request).await.map_err(|error| {
            let cause = error.source().map_or_else(|| error.to_string(), innermost);
            Error::not_ready(format!("{} cannot be reached: {cause}", self.url))
        })?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(|error| {
            Error::not_ready(format!("{} broke off its answer: {error}", self.url))
        })?;
        let length = head.headers.get(HEADER_LENGTH).map(HeaderValue::to_str);
        let header_length = length.and_then(|text| text.ok()?.parse().ok());
        Ok(Answer { status: head.status, header_length, body: body.to_bytes() })
    }
}

impl Answer {
    /// The answer, if it is one. Where another server would not be asked again
    /// for the same, the error says that it is not ready.
    ///
    /// # Errors
    /// What the server says.
    pub(super) fn success(self) -> Result<Self> {
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

fn unsendable(error: http::Error) -> Error {
    Error::internal(format!("the request to the upstream cannot be built: {error}"))
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> UpstreamTarget {
        UpstreamTarget {
            url: url.to_string(),
            model: "a model".to_string(),
            version: Some("2".to_string()),
            timeout_ms: 100,
            max_concurrent: 1,
            check_every_ms: 100,
        }
    }

    #[test]
    fn addresses_are_plain_http() {
        let client = Client::new(&target("http://there:80/base")).unwrap();
        let request = client.request(Method::GET, client.model_path()).unwrap();
        let uri = request.uri_ref().unwrap().to_string();
        assert_eq!(uri, "http://there:80/base/v2/models/a%20model/versions/2");
        for (url, want) in [("https://there", "plain HTTP"), ("there", "plain HTTP"), ("", "no")] {
            let error = Client::new(&target(url)).err().unwrap();
            assert!(error.message().contains(want), "{error}");
        }
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
