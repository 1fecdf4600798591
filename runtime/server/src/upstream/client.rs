use super::grpc::Grpc;
use super::http::{Answer, Http};
use crate::net::{client_config, roots};
use http::Uri;
use http::uri::Scheme;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use mortise_deploy::{UpstreamModel, UpstreamTarget};
use mortise_grpc_proto::ModelInferResponse;
use mortise_types::{Error, Result, Tensor, TraceContext};
use mortise_wire::{NamedTensor, WireLimits};
use std::time::{Duration, Instant};
use tokio_rustls::rustls::RootCertStore;

/// Bytes of one answer.
pub(super) const MAX_ANSWER_BYTES: usize = 1 << 30;

/// One model of another server, and the time that it may take to answer.
pub(super) struct Client {
    protocol: Protocol,
    timeout: Duration,
    /// `http://host:port` or of another scheme, for messages.
    url: String,
}

enum Protocol {
    Http(Box<Http>),
    Grpc(Box<Grpc>),
}

/// One request.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) inputs: &'a [(&'a str, Tensor)],
    /// Over HTTP, whether tensors go and come as binary data.
    pub(super) is_binary: bool,
    pub(super) trace: Option<&'a TraceContext>,
}

/// What came back.
pub(super) enum Reply {
    Http(Answer),
    Grpc(ModelInferResponse),
}

impl Client {
    /// # Errors
    /// `InvalidInput` when the address is none, `Unsupported` when it is of
    /// another protocol.
    pub(super) fn new(target: &UpstreamTarget) -> Result<Self> {
        let uri: Uri = target.url.parse().map_err(|error| {
            Error::invalid(format!("\"{}\" is not an address: {error}", target.url))
        })?;
        let authority = uri
            .authority()
            .cloned()
            .ok_or_else(|| Error::invalid(format!("\"{}\" names no host", target.url)));
        let protocol = match uri.scheme_str() {
            Some("http" | "https") => {
                Protocol::Http(Box::new(Http::new(target, &uri, authority?)?))
            }
            Some("grpc") => Protocol::Grpc(Box::new(Grpc::new(target, Scheme::HTTP, authority?)?)),
            Some("grpcs") => {
                Protocol::Grpc(Box::new(Grpc::new(target, Scheme::HTTPS, authority?)?))
            }
            _ => {
                return Err(Error::unsupported(format!(
                    "\"{}\": write an upstream as http://HOST:PORT, https://, grpc:// or, for \
                     gRPC over TLS, grpcs://",
                    target.url
                )));
            }
        };
        let timeout = Duration::from_millis(target.timeout_ms);
        Ok(Self { protocol, timeout, url: target.url.clone() })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) async fn describe(&self, deadline: Instant) -> Result<UpstreamModel> {
        let described = async {
            match &self.protocol {
                Protocol::Http(http) => http.describe().await,
                Protocol::Grpc(grpc) => grpc.describe().await,
            }
        };
        self.within(deadline, described).await
    }

    /// # Errors
    /// When the model is not ready, or does not say so until `deadline`.
    pub(super) async fn check_ready(&self, deadline: Instant) -> Result<()> {
        let checked = async {
            match &self.protocol {
                Protocol::Http(http) => http.check_ready().await,
                Protocol::Grpc(grpc) => grpc.check_ready().await,
            }
        };
        self.within(deadline, checked).await
    }

    pub(super) async fn infer(&self, question: Question<'_>, deadline: Instant) -> Result<Reply> {
        let until = deadline.min(Instant::now() + self.timeout);
        let asked = async {
            match &self.protocol {
                Protocol::Http(http) => http.infer(question).await,
                Protocol::Grpc(grpc) => grpc.infer(question, until).await,
            }
        };
        self.within(deadline, asked).await
    }

    /// The whole exchange, in the time that one may take.
    async fn within<T>(
        &self,
        deadline: Instant,
        exchange: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let own = Instant::now() + self.timeout;
        match tokio::time::timeout_at(own.min(deadline).into(), exchange).await {
            Ok(answer) => answer,
            Err(_) if deadline < own => {
                Err(Error::deadline("it did not answer before the deadline"))
            }
            Err(_) => Err(Error::not_ready(format!(
                "it did not answer within timeout_ms = {}",
                self.timeout.as_millis()
            ))),
        }
    }
}

impl Reply {
    /// # Errors
    /// `InvalidInput` when it is malformed.
    pub(super) fn outputs(&self, limits: &WireLimits) -> Result<Vec<NamedTensor>> {
        match self {
            Self::Http(answer) => answer.outputs(limits),
            Self::Grpc(response) => response.outputs(limits),
        }
    }
}

/// What opens connections, over TLS where the address says so.
pub(super) type Connector = HttpsConnector<HttpConnector>;

/// # Errors
/// `NotReady` when there are no certificates to know a server by, and it is to be
/// reached over TLS.
pub(super) fn connector(target: &UpstreamTarget, scheme: &Scheme, over: Over) -> Result<Connector> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(Duration::from_millis(target.timeout_ms)));
    // Whether it is "https:" is for the connector around it to say.
    connector.enforce_http(false);
    // Without TLS nobody is asked for.
    let known = if *scheme == Scheme::HTTPS { roots()? } else { RootCertStore::empty() };
    let tls = client_config(known)?;
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    Ok(match over {
        Over::Http1 => builder.enable_http1().wrap_connector(connector),
        Over::Http2 => builder.enable_http2().wrap_connector(connector),
    })
}

/// The version of HTTP that a connection is for.
#[derive(Clone, Copy)]
pub(super) enum Over {
    Http1,
    Http2,
}

pub(super) fn unsendable(error: http::Error) -> Error {
    Error::internal(format!("the request to the upstream cannot be built: {error}"))
}

/// The innermost error, which says what happened.
pub(super) fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_their_protocol() {
        let client = |url: &str| {
            Client::new(&UpstreamTarget {
                url: url.to_string(),
                model: "m".to_string(),
                version: None,
                timeout_ms: 100,
                max_concurrent: 1,
                check_every_ms: 100,
            })
        };
        assert!(matches!(client("http://there:80/base").unwrap().protocol, Protocol::Http(_)));
        assert!(matches!(client("grpc://there:8001").unwrap().protocol, Protocol::Grpc(_)));
        assert!(matches!(client("https://there").unwrap().protocol, Protocol::Http(_)));
        assert!(matches!(client("grpcs://there:8001").unwrap().protocol, Protocol::Grpc(_)));
        for (url, want) in [("ftp://there", "grpcs://"), ("there", "grpcs://"), ("", "no")] {
            let error = client(url).err().unwrap();
            assert!(error.message().contains(want), "{error}");
        }
    }
}
