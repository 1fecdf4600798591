//! What each kind of error is called in HTTP and in gRPC. The only place that
//! decides it.

use http::StatusCode;
use mortise_types::{Error, ErrorKind};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// The status of an error of `kind`.
pub(crate) fn http_status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::InvalidInput | ErrorKind::Unsupported => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::Overloaded | ErrorKind::NotReady => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::Deadline => StatusCode::GATEWAY_TIMEOUT,
        // A kind added later is ours to explain, not the client's to repair.
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The gRPC code of an error of `kind`.
pub(crate) fn grpc_code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidInput => Code::InvalidArgument,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::TooLarge | ErrorKind::RateLimited => Code::ResourceExhausted,
        ErrorKind::Forbidden => Code::PermissionDenied,
        ErrorKind::Conflict => Code::Aborted,
        ErrorKind::Overloaded | ErrorKind::NotReady => Code::Unavailable,
        ErrorKind::Deadline => Code::DeadlineExceeded,
        // A kind added later is ours to explain, not the client's to repair.
        _ => Code::Internal,
    }
}

/// An error as a gRPC status, which says when to try again where that helps.
pub(crate) fn grpc_status(error: &Error) -> Status {
    let mut status = Status::new(grpc_code(error.kind()), error.message());
    let again = error.retry_after().map(|after| u64::try_from(after.as_millis()));
    let again = again.and_then(Result::ok).or(retry_after_s(error.kind()).map(|s| s * 1_000));
    if let Some(ms) = again {
        status.metadata_mut().insert("grpc-retry-pushback-ms", MetadataValue::from(ms));
    }
    status
}

/// After how many seconds another try makes sense, for the kinds where it does.
pub(crate) fn retry_after_s(kind: ErrorKind) -> Option<u64> {
    matches!(kind, ErrorKind::Overloaded | ErrorKind::NotReady | ErrorKind::RateLimited)
        .then_some(1)
}

/// The same for an error, which may know better; whole seconds, rounded up.
pub(crate) fn error_retry_after_s(error: &Error) -> Option<u64> {
    let known = error.retry_after().map(|after| after.as_millis().div_ceil(1_000).max(1));
    known.and_then(|seconds| u64::try_from(seconds).ok()).or_else(|| retry_after_s(error.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_kind_has_its_status() {
        for (kind, status, code, retries) in [
            (ErrorKind::InvalidInput, 400, Code::InvalidArgument, false),
            (ErrorKind::Unsupported, 400, Code::Unimplemented, false),
            (ErrorKind::NotFound, 404, Code::NotFound, false),
            (ErrorKind::TooLarge, 413, Code::ResourceExhausted, false),
            (ErrorKind::Forbidden, 403, Code::PermissionDenied, false),
            (ErrorKind::Conflict, 409, Code::Aborted, false),
            (ErrorKind::Overloaded, 503, Code::Unavailable, true),
            (ErrorKind::RateLimited, 429, Code::ResourceExhausted, true),
            (ErrorKind::NotReady, 503, Code::Unavailable, true),
            (ErrorKind::Deadline, 504, Code::DeadlineExceeded, false),
            (ErrorKind::LimitExceeded, 500, Code::Internal, false),
            (ErrorKind::PluginFailed, 500, Code::Internal, false),
            (ErrorKind::Internal, 500, Code::Internal, false),
        ] {
            assert_eq!(http_status(kind).as_u16(), status, "{kind:?}");
            assert_eq!(grpc_code(kind), code, "{kind:?}");
            assert_eq!(retry_after_s(kind).is_some(), retries, "{kind:?}");
        }
    }

    #[test]
    fn an_error_may_know_when_to_retry() {
        let error = Error::rate_limited("slower").with_retry_after(Duration::from_millis(2_100));
        assert_eq!(error_retry_after_s(&error), Some(3));
        let status = grpc_status(&error);
        assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "2100");
        assert_eq!(error_retry_after_s(&Error::overloaded("full")), Some(1));
        assert_eq!(error_retry_after_s(&Error::invalid("no")), None);
    }
}
