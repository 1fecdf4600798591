use super::encoding;
use super::{DataPlane, reply};
use crate::plane::receiving::BodyBudget;
use crate::plane::{is_large, off_worker};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use mortise_types::{Error, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What is read and thrown away of a body that was refused, so that the client
/// is done sending and sees the reply instead of a reset.
const MAX_DISCARDED_BYTES: usize = 64 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads and decompresses a body within `max_body_bytes` and until `deadline`.
///
/// # Errors
/// `TooLarge` before reading when the length says so, and while reading;
/// `Deadline`; `InvalidInput` when the client breaks off or the compression is
/// wrong.
pub(super) async fn read(
    plane: &Arc<DataPlane>,
    headers: &HeaderMap,
    body: Incoming,
    deadline: Instant,
) -> Result<Bytes> {
    let max_bytes = plane.settings.max_body_bytes;
    let collected = collect(body, max_bytes, &plane.receiving);
    let bytes = match tokio::time::timeout_at(deadline, collected).await {
        Ok(collected) => collected?,
        Err(_elapsed) => {
            return Err(Error::deadline(format!(
                "the request's body did not arrive within request_timeout_ms = {}",
                plane.settings.request_timeout.as_millis()
            )));
        }
    };
    let bytes = match encoding::of_request(headers)? {
        None => bytes,
        Some(coding) => {
            // A compressed body may grow a thousandfold, so size says little.
            off_worker(true, move || encoding::decompress(coding, &bytes, max_bytes)).await??
        }
    };
    plane.observer.http.body_read(bytes.len());
    Ok(bytes)
}

async fn collect(mut body: Incoming, max_bytes: usize, budget: &Arc<BodyBudget>) -> Result<Bytes> {
    let told = body.size_hint();
    if told.lower() > max_bytes as u64 {
        tokio::spawn(discard(body));
        return Err(too_large(max_bytes));
    }
    let Some(first) = next_chunk(&mut body).await? else { return Ok(Bytes::new()) };
    // Most bodies come in one piece, which is then not copied.
    let Some(second) = next_chunk(&mut body).await? else {
        return if first.len() > max_bytes { Err(too_large(max_bytes)) } else { Ok(first) };
    };
    let mut share = budget.share();
    let told = usize::try_from(told.lower()).unwrap_or(0);
    let mut bytes = BytesMut::with_capacity(told.max(first.len() + second.len()));
    let mut next = Some(second);
    bytes.extend_from_slice(&first);
    while let Some(chunk) = next {
        bytes.extend_from_slice(&chunk);
        let held = share.hold(bytes.len() - first.len());
        if held.is_err() || bytes.len() > max_bytes {
            tokio::spawn(discard(body));
            return Err(held.err().unwrap_or_else(|| too_large(max_bytes)));
        }
        next = next_chunk(&mut body).await?;
    }
    Ok(bytes.freeze())
}

/// The next data of a body; trailers are skipped.
async fn next_chunk(body: &mut Incoming) -> Result<Option<Bytes>> {
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| Error::invalid(format!("the request's body broke off: {error}")))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

fn too_large(max_bytes: usize) -> Error {
    Error::too_large(format!(
        "the request's body is larger than max_body_bytes = {max_bytes}; send fewer rows at a \
         time, or raise http.max_body_bytes"
    ))
}

async fn discard(mut body: Incoming) {
    let read_on = async {
        let mut discarded = 0;
        while let Ok(Some(chunk)) = next_chunk(&mut body).await {
            discarded += chunk.len();
            if discarded > MAX_DISCARDED_BYTES {
                return;
            }
        }
    };
    // However it ends, the reply has been on its way for a while.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, read_on).await;
}

/// Compresses a reply's body when the client accepts that and it pays.
pub(super) async fn compress(
    reply: reply::Reply,
    accepted: Option<encoding::Coding>,
) -> reply::Reply {
    let (mut parts, body) = reply.into_parts();
    let bytes = usize::try_from(body.byte_len()).unwrap_or(usize::MAX);
    let Some(coding) = accepted.filter(|_| bytes >= encoding::MIN_COMPRESSED_BYTES) else {
        return http::Response::from_parts(parts, body);
    };
    let compressed = off_worker(is_large(bytes), move || encoding::compress(coding, body)).await;
    match compressed.and_then(|result| result) {
        Ok(compressed) => {
            parts.headers.insert(header::CONTENT_ENCODING, coding.header_value());
            parts.headers.insert(header::VARY, header::HeaderValue::from_static("accept-encoding"));
            http::Response::from_parts(parts, compressed.into())
        }
        Err(error) => reply::error(&error),
    }
}
