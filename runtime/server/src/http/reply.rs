use crate::status::{error_retry_after_s, http_status, retry_after_s};
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use mortise_types::{Error, ErrorKind};
use mortise_wire::error_body;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

pub(super) type Reply = Response<Body>;

/// Says where the JSON of an infer request or reply ends.
pub(super) const HEADER_LENGTH: HeaderName =
    HeaderName::from_static("inference-header-content-length");

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(super) const BINARY: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// A body that is there already, in one or more pieces.
pub(super) struct Body {
    first: Option<Bytes>,
    rest: std::vec::IntoIter<Bytes>,
}

impl Body {
    pub(super) fn empty() -> Self {
        Self { first: None, rest: Vec::new().into_iter() }
    }

    pub(super) fn segments(segments: Vec<Bytes>) -> Self {
        let mut rest = segments.into_iter();
        Self { first: rest.next().filter(|first| !first.is_empty()), rest }
    }

    pub(super) fn into_segments(self) -> impl Iterator<Item = Bytes> {
        self.first.into_iter().chain(self.rest)
    }

    pub(super) fn byte_len(&self) -> u64 {
        let rest = self.rest.as_slice().iter();
        self.first.iter().chain(rest).map(|bytes| bytes.len() as u64).sum()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { first: Some(bytes).filter(|bytes| !bytes.is_empty()), ..Self::empty() }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.first.take().or_else(|| self.rest.next());
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.as_slice().is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.byte_len())
    }
}

pub(super) fn json(body: Bytes) -> Reply {
    with_status(StatusCode::OK, body)
}

pub(super) fn with_status(status: StatusCode, body: Bytes) -> Reply {
    let mut reply = Response::new(Body::from(body));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, JSON);
    reply
}

/// 200 without a body.
pub(super) fn done() -> Reply {
    Response::new(Body::empty())
}

/// 503 with a body of its own.
pub(super) fn unavailable(body: Bytes) -> Reply {
    let mut reply = with_status(http_status(ErrorKind::NotReady), body);
    add_retry_after(&mut reply, retry_after_s(ErrorKind::NotReady));
    reply
}

pub(super) fn error(error: &Error) -> Reply {
    let mut reply = with_status(http_status(error.kind()), error_body(error.message()));
    add_retry_after(&mut reply, error_retry_after_s(error));
    reply
}

fn add_retry_after(reply: &mut Reply, seconds: Option<u64>) {
    if let Some(seconds) = seconds {
        reply.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
}

pub(super) fn no_such_path(path: &str) -> Reply {
    let path: String = path.chars().take(128).collect();
    let message = format!("no such path {path:?}; the protocol is under /v2");
    error(&Error::not_found(message))
}

/// 401, which is no kind of error either: it comes before anything is looked at.
pub(super) fn unauthorized(message: &str) -> Reply {
    let mut reply = with_status(StatusCode::UNAUTHORIZED, error_body(message));
    let scheme = HeaderValue::from_static("Bearer");
    reply.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
    reply
}

/// 405, which no kind of error stands for.
pub(super) fn wrong_method(allow: &'static str) -> Reply {
    let body = error_body(&format!("this path answers {allow}"));
    let mut reply = with_status(StatusCode::METHOD_NOT_ALLOWED, body);
    reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    reply
}
