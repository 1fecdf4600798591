use super::DataPlane;
use super::body;
use super::encoding;
use super::reply::{self, BINARY, Body, HEADER_LENGTH, JSON, Reply};
use crate::auth::Client;
use crate::net::Crowded;
use crate::plane::infer::{Asked, Origin};
use crate::plane::regions::Regions;
use crate::plane::{is_large, off_worker};
use crate::trace::{Protocol, RequestTrace};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use hyper::body::Incoming;
use mortise_observe::Overhead;
use mortise_serve::{InferAnswer, Revision};
use mortise_types::{Error, Result, Signature, Tensor};
use mortise_wire::{Encoded, InferReply, InferRequest, decode_infer, encode_infer};
use std::sync::Arc;
use std::time::Instant;

/// Elements of outputs above which their encoding as JSON leaves the thread
/// that serves connections.
const MANY_ELEMENTS: usize = 8 * 1024;

/// What a request is for, and whose it is.
pub(super) struct Target<'a> {
    pub(super) name: &'a str,
    pub(super) version: Option<&'a str>,
    /// Who showed an API key.
    pub(super) client: Option<Client>,
}

/// `POST /v2/models/{m}[/versions/{v}]/infer`
pub(super) async fn infer(
    plane: &Arc<DataPlane>,
    target: Target<'_>,
    request: Request<Incoming>,
) -> Reply {
    let accepted = encoding::accepted(request.headers());
    let arrived = Instant::now();
    let mut trace = plane.tracer.begin(Protocol::Http, request.headers(), target.name, arrived);
    let outcome = respond(plane, target, request, arrived, &mut trace).await;
    trace.ended(outcome.as_ref().err());
    let mut reply = match outcome {
        Ok((encoded, origin)) => {
            plane.observer.http.body_sent(encoded.byte_len());
            success(encoded, &origin)
        }
        Err(error) => reply::error(&error),
    };
    trace.write(reply.headers_mut());
    match accepted {
        None => reply,
        accepted => body::compress(reply, accepted).await,
    }
}

fn success(encoded: Encoded, origin: &Origin) -> Reply {
    let content_type = if encoded.header_length.is_some() { BINARY } else { JSON };
    let mut reply = Response::new(Body::segments(encoded.segments));
    reply.headers_mut().insert(header::CONTENT_TYPE, content_type);
    origin.write(reply.headers_mut());
    if let Some(length) = encoded.header_length {
        reply.headers_mut().insert(HEADER_LENGTH, length.into());
    }
    reply
}

async fn respond(
    plane: &Arc<DataPlane>,
    target: Target<'_>,
    request: Request<Incoming>,
    arrived: Instant,
    trace: &mut RequestTrace,
) -> Result<(Encoded, Origin)> {
    let Target { name, version, client } = target;
    let latest = arrived + plane.settings.request_timeout;
    let (head, body) = request.into_parts();
    let body = body::read(plane, &head.headers, body, latest.into()).await?;
    let endpoint = plane.endpoint(name)?;
    let header_length = header_length(&head.headers)?;
    // Only a raw request takes its shape from the model.
    let live = (header_length == Some(0)).then(|| endpoint.live()).flatten();
    let received = Instant::now();
    let mut request = decode(plane, body, header_length, live).await?;
    let decoded = Instant::now();
    trace.decoded(received, decoded);
    let asked = Asked {
        name,
        version,
        arrived,
        latest,
        headers: &head.headers,
        client: client.as_ref(),
        trace: trace.context(),
        steps: trace.steps(),
        is_crowded: Crowded::is_in(&head.extensions),
    };
    let answer = plane.infer(asked, &mut request).await?;
    trace.answered(decoded, &answer);
    let (origin, timings) = (Origin::of(&answer), answer.timings);
    let answered = Instant::now();
    let encoded = encode(plane, name, answer, request).await?;
    trace.encoded(answered);
    let (decode, encode) = (decoded - received, answered.elapsed());
    let elsewhere = timings.queue + timings.compute_infer;
    let total = received.elapsed().saturating_sub(elsewhere);
    plane.observer.http.answered(Overhead { decode, encode, total });
    Ok((encoded, origin))
}

fn header_length(headers: &HeaderMap) -> Result<Option<usize>> {
    let Some(value) = headers.get(HEADER_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    length.map(Some).ok_or_else(|| {
        Error::invalid(format!(
            "Inference-Header-Content-Length must be a byte count, got {value:?}"
        ))
    })
}

async fn decode(
    plane: &Arc<DataPlane>,
    body: Bytes,
    header_length: Option<usize>,
    live: Option<Arc<Revision>>,
) -> Result<InferRequest> {
    let json_bytes = header_length.unwrap_or(body.len());
    if !is_large(json_bytes) {
        let signature = live.as_deref().map(Revision::signature);
        return decode_infer(&body, header_length, signature, &plane.limits);
    }
    let plane = plane.clone();
    off_worker(true, move || {
        let signature: Option<&Signature> = live.as_deref().map(Revision::signature);
        decode_infer(&body, header_length, signature, &plane.limits)
    })
    .await?
}

async fn encode(
    plane: &DataPlane,
    name: &str,
    answer: InferAnswer,
    request: InferRequest,
) -> Result<Encoded> {
    let elements: usize = answer.outputs.iter().map(|(_, tensor): &(_, Tensor)| tensor.len()).sum();
    if elements <= MANY_ELEMENTS {
        return encode_now(name, &answer, &request, &plane.regions);
    }
    let (name, regions) = (name.to_owned(), plane.regions.clone());
    off_worker(true, move || encode_now(&name, &answer, &request, &regions)).await?
}

fn encode_now(
    name: &str,
    answer: &InferAnswer,
    request: &InferRequest,
    regions: &Regions,
) -> Result<Encoded> {
    let reply = InferReply {
        model_name: name,
        model_version: answer.revision.version(),
        variant: Some(&answer.variant),
        outputs: &answer.outputs,
    };
    encode_infer(&reply, request, regions)
}
