//! What each kind of error is called in HTTP. The only place that decides it.

use http::StatusCode;
use mortise_types::{Error, ErrorKind};

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
        for (kind, status, retries) in [
            (ErrorKind::InvalidInput, 400, false),
            (ErrorKind::Unsupported, 400, false),
            (ErrorKind::NotFound, 404, false),
            (ErrorKind::TooLarge, 413, false),
            (ErrorKind::Forbidden, 403, false),
            (ErrorKind::Conflict, 409, false),
            (ErrorKind::Overloaded, 503, true),
            (ErrorKind::RateLimited, 429, true),
            (ErrorKind::NotReady, 503, true),
            (ErrorKind::Deadline, 504, false),
            (ErrorKind::LimitExceeded, 500, false),
            (ErrorKind::PluginFailed, 500, false),
            (ErrorKind::Internal, 500, false),
        ] {
            assert_eq!(http_status(kind).as_u16(), status, "{kind:?}");
            assert_eq!(retry_after_s(kind).is_some(), retries, "{kind:?}");
        }
    }

    #[test]
    fn an_error_may_know_when_to_retry() {
        let error = Error::rate_limited("slower").with_retry_after(Duration::from_millis(2_100));
        assert_eq!(error_retry_after_s(&error), Some(3));
        assert_eq!(error_retry_after_s(&Error::overloaded("full")), Some(1));
        assert_eq!(error_retry_after_s(&Error::invalid("no")), None);
    }
}
