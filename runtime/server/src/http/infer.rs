use super::DataPlane;
use super::body::{self, is_large, off_worker};
use super::encoding;
use super::reply::{self, BINARY, Body, HEADER_LENGTH, JSON, Reply};
use crate::auth::Client;
use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response, header};
use hyper::body::Incoming;
use mortise_serve::{InferAnswer, InferCall, RequestFacts, Revision, SequenceId, SequenceStep};
use mortise_types::{Error, Result, Signature, Tensor};
use mortise_wire::{
    Encoded, InferReply, InferRequest, Parameter, Parameters, Sequence, decode_infer, encode_infer,
};
use std::borrow::Cow;
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
    let reply = match respond(plane, target, request).await {
        Ok((encoded, origin)) => {
            plane.observer.http.body_sent(encoded.byte_len());
            success(encoded, &origin)
        }
        Err(error) => reply::error(&error),
    };
    match accepted {
        None => reply,
        accepted => body::compress(reply, accepted).await,
    }
}

/// The version that answered, and what it is called among those that share the
/// traffic.
const VERSION: HeaderName = HeaderName::from_static("mortise-version");
const VARIANT: HeaderName = HeaderName::from_static("mortise-variant");

/// Which version answered.
struct Origin {
    version: u64,
    variant: Arc<str>,
}

/// What routers may look at in a request over HTTP.
struct Facts<'a> {
    headers: &'a HeaderMap,
    parameters: &'a Parameters,
}

impl RequestFacts for Facts<'_> {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name).map(HeaderValue::as_bytes)
    }

    fn parameter(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let text = |text: String| Some(Cow::Owned(text.into_bytes()));
        match self.parameters.get(name)? {
            Parameter::String(value) => Some(Cow::Borrowed(value.as_bytes())),
            Parameter::Bool(value) => text(value.to_string()),
            Parameter::Integer(value) => text(value.to_string()),
            Parameter::Float(value) => text(value.to_string()),
        }
    }
}

fn success(encoded: Encoded, origin: &Origin) -> Reply {
    let content_type = if encoded.header_length.is_some() { BINARY } else { JSON };
    let mut reply = Response::new(Body::segments(encoded.segments));
    reply.headers_mut().insert(header::CONTENT_TYPE, content_type);
    reply.headers_mut().insert(VERSION, origin.version.into());
    if let Ok(variant) = HeaderValue::from_str(&origin.variant) {
        reply.headers_mut().insert(VARIANT, variant);
    }
    if let Some(length) = encoded.header_length {
        reply.headers_mut().insert(HEADER_LENGTH, length.into());
    }
    reply
}

async fn respond(
    plane: &Arc<DataPlane>,
    target: Target<'_>,
    request: Request<Incoming>,
) -> Result<(Encoded, Origin)> {
    let Target { name, version, client } = target;
    let arrived = Instant::now();
    let latest = arrived + plane.settings.request_timeout;
    let (head, body) = request.into_parts();
    let body = body::read(plane, &head.headers, body, latest.into()).await?;
    let endpoint = plane
        .registry
        .endpoint(name)
        .ok_or_else(|| Error::not_found(format!("unknown model \"{name}\"")))?;
    let header_length = header_length(&head.headers)?;
    // Only a raw request takes its shape from the model.
    let live = (header_length == Some(0)).then(|| endpoint.live()).flatten();
    let mut request = decode(plane, body, header_length, live).await?;
    let inputs = std::mem::take(&mut request.inputs);
    let sequence = request.sequence.take().map(sequence_step);
    let outputs = request.outputs.as_ref();
    let facts = Facts { headers: &head.headers, parameters: &request.parameters };
    let call = InferCall {
        endpoint: name,
        version,
        inputs: inputs.into_iter().map(|input| (input.name, input.tensor)).collect(),
        outputs: outputs.map(|list| list.iter().map(|output| output.name.clone()).collect()),
        arrived: Some(arrived),
        deadline: Some(latest),
        timeout: request.timeout,
        priority: request.priority,
        sequence,
        facts: Some(&facts),
        client_key: client.as_ref().map(|client| &*client.0),
    };
    let answer = plane.registry.infer(call).await?;
    let origin = Origin { version: answer.revision.version(), variant: answer.variant.clone() };
    Ok((encode(name, answer, request).await?, origin))
}

fn sequence_step(sequence: Sequence) -> SequenceStep {
    let id = match sequence.id {
        mortise_wire::SequenceId::Number(number) => SequenceId::Number(number),
        mortise_wire::SequenceId::Text(text) => SequenceId::Text(text),
    };
    SequenceStep { id, start: sequence.start, end: sequence.end }
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

async fn encode(name: &str, answer: InferAnswer, request: InferRequest) -> Result<Encoded> {
    let elements: usize = answer.outputs.iter().map(|(_, tensor): &(_, Tensor)| tensor.len()).sum();
    if elements <= MANY_ELEMENTS {
        return encode_now(name, &answer, &request);
    }
    let name = name.to_owned();
    off_worker(true, move || encode_now(&name, &answer, &request)).await?
}

fn encode_now(name: &str, answer: &InferAnswer, request: &InferRequest) -> Result<Encoded> {
    let reply = InferReply {
        model_name: name,
        model_version: answer.revision.version(),
        variant: Some(&answer.variant),
        outputs: &answer.outputs,
    };
    encode_infer(&reply, request)
}
