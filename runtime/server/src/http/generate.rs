//! The generate extension: named values in, named values out, as plain JSON.
//! A streamed answer is one server-sent event for each response, and a model
//! gives one response to a request.

use super::infer::Target;
use super::reply::{self, JSON, Reply};
use super::route::Generate;
use super::{DataPlane, body};
use crate::net::Crowded;
use crate::plane::infer::{Asked, Origin};
use crate::trace::{Protocol, RequestTrace};
use bytes::Bytes;
use http::{HeaderValue, Request, header};
use hyper::body::Incoming;
use mortise_types::{Error, Result, Signature, TensorSpec};
use mortise_wire::{InferReply, InferRequest, decode_infer, encode_generated};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Instant;

const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");

/// `POST /v2/models/{m}[/versions/{v}]/generate` and `…/generate_stream`
pub(super) async fn generate(
    plane: &Arc<DataPlane>,
    target: Target<'_>,
    kind: Generate,
    request: Request<Incoming>,
) -> Reply {
    let arrived = Instant::now();
    let mut trace = plane.tracer.begin(Protocol::Http, request.headers(), target.name, arrived);
    let outcome = respond(plane, target, request, arrived, &mut trace).await;
    trace.ended(outcome.as_ref().err());
    let mut reply = match outcome {
        Ok((json, origin)) => success(plane, kind, json, &origin),
        Err(error) => reply::error(&error),
    };
    trace.write(reply.headers_mut());
    reply
}

fn success(plane: &DataPlane, kind: Generate, json: Bytes, origin: &Origin) -> Reply {
    plane.observer.http.body_sent(json.len());
    let (content_type, body) = match kind {
        Generate::Whole => (JSON, json),
        Generate::Stream => (EVENTS, [b"data: ", json.as_ref(), b"\n\n"].concat().into()),
    };
    let mut reply = reply::json(body);
    reply.headers_mut().insert(header::CONTENT_TYPE, content_type);
    origin.write(reply.headers_mut());
    reply
}

async fn respond(
    plane: &Arc<DataPlane>,
    target: Target<'_>,
    request: Request<Incoming>,
    arrived: Instant,
    trace: &mut RequestTrace,
) -> Result<(Bytes, Origin)> {
    let Target { name, version, client } = target;
    let latest = arrived + plane.settings.request_timeout;
    let (head, body) = request.into_parts();
    let body = body::read(plane, &head.headers, body, latest.into()).await?;
    let signature = plane.live(name, version)?.signature().clone();
    let received = Instant::now();
    let mut request = decode(&body, &signature, plane)?;
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
    let answered = Instant::now();
    let origin = Origin::of(&answer);
    let reply = InferReply {
        model_name: name,
        model_version: answer.revision.version(),
        variant: None,
        outputs: &answer.outputs,
    };
    let json = encode_generated(&reply, request.id.as_deref())?;
    trace.encoded(answered);
    Ok((json, origin))
}

/// Members with an input's name are that input, the others are parameters.
fn decode(body: &[u8], signature: &Signature, plane: &DataPlane) -> Result<InferRequest> {
    let members: Map<String, Value> = serde_json::from_slice(body)
        .map_err(|error| Error::invalid(format!("the request is not a JSON object: {error}")))?;
    let (mut inputs, mut parameters, mut id) = (Vec::new(), Map::new(), Value::Null);
    for (name, value) in members {
        match (name.as_str(), value) {
            ("id", value) => id = value,
            ("parameters", Value::Object(more)) => parameters.extend(more),
            (_, value) => match signature.inputs.iter().find(|spec| spec.name == name) {
                Some(spec) => inputs.push(input(spec, value)?),
                None => drop(parameters.insert(name, value)),
            },
        }
    }
    let request = json!({ "id": id, "inputs": inputs, "parameters": parameters }).to_string();
    decode_infer(&Bytes::from(request), None, None, &plane.limits)
}

/// An input as infer requests have it.
fn input(spec: &TensorSpec, value: Value) -> Result<Value> {
    let datatype = spec.dtype.wire_name().unwrap_or("INVALID");
    let shape = shape(spec, &value)?;
    let data = if value.is_array() { value } else { json!([value]) };
    Ok(json!({ "name": spec.name, "datatype": datatype, "shape": shape, "data": data }))
}

/// The shape of nested lists; of a scalar or a flat list where the model wants
/// more dimensions, the model's, with 1 for all variable ones but the last.
fn shape(spec: &TensorSpec, value: &Value) -> Result<Vec<usize>> {
    let nested = nesting(value);
    if nested.len() == spec.shape.len() {
        return Ok(nested);
    }
    let elements: usize = nested.iter().product();
    let last = spec.shape.iter().rposition(|&dim| dim < 0);
    let known = spec.shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(1));
    let mut shape: Vec<usize> = known.collect();
    let fixed: usize = shape.iter().product();
    if let (Some(last), true) = (last, fixed > 0 && elements.is_multiple_of(fixed)) {
        shape[last] = elements / fixed;
    }
    match shape.iter().product::<usize>() == elements && nested.len() <= 1 {
        true => Ok(shape),
        false => Err(Error::invalid(format!(
            "input \"{}\": expects {} of shape {:?}, got {nested:?}",
            spec.name, spec.dtype, spec.shape
        ))),
    }
}

/// Lengths of lists within lists, by their first members.
fn nesting(value: &Value) -> Vec<usize> {
    let mut lengths = Vec::new();
    let mut value = value;
    while let Value::Array(members) = value {
        lengths.push(members.len());
        let Some(first) = members.first() else { break };
        value = first;
    }
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortise_types::DType;

    #[test]
    fn shapes_follow_the_model() {
        for (spec, value, want) in [
            (&[-1][..], json!("a"), Some(vec![1])),
            (&[-1, 1], json!("a"), Some(vec![1, 1])),
            (&[-1, 2], json!([1, 2]), Some(vec![1, 2])),
            (&[-1, 2], json!([1, 2, 3, 4]), Some(vec![2, 2])),
            (&[-1, -1], json!([1, 2, 3]), Some(vec![1, 3])),
            (&[-1, 2], json!([[1, 2], [3, 4], [5, 6]]), Some(vec![3, 2])),
            (&[-1, 2], json!([1, 2, 3]), None),
            (&[2], json!(1), None),
            (&[2, 2, 1], json!([[1, 2], [3, 4]]), None),
            (&[], json!(1), Some(vec![])),
            (&[-1, 0], json!(1), None),
        ] {
            let spec = TensorSpec::new("x", DType::F32, spec);
            assert_eq!(shape(&spec, &value).ok(), want, "{spec} {value}");
        }
    }
}
