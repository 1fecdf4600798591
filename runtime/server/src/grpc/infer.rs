use super::Service;
use crate::auth::Client;
use crate::net::Crowded;
use crate::plane::infer::{Asked, Origin};
use crate::plane::{is_large, off_worker};
use crate::trace::{Protocol, RequestTrace};
use http::HeaderMap;
use mortise_grpc_proto::{ModelInferRequest, ModelInferResponse, encode_infer};
use mortise_observe::Overhead;
use mortise_types::Result;
use mortise_wire::{InferReply, InferRequest};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Response};

/// What is known about a request besides its message.
#[derive(Clone)]
pub(super) struct Caller {
    arrived: Instant,
    /// Until when it must be answered.
    latest: Instant,
    /// The call's metadata, for routers; a stream's are those of its call.
    metadata: Arc<MetadataMap>,
    /// Who showed an API key.
    client: Option<Client>,
    /// Whether more requests of the connection were under way.
    is_crowded: bool,
}

impl Caller {
    /// Of a request within a stream, which begins later than the call.
    pub(super) fn again(&self, limit: Duration, is_crowded: bool) -> Self {
        let arrived = Instant::now();
        Self { arrived, latest: arrived + limit, is_crowded, ..self.clone() }
    }
}

impl Service {
    pub(super) fn caller(&self, metadata: MetadataMap, extensions: &Extensions) -> Caller {
        let arrived = Instant::now();
        let limit = self.settings.request_timeout;
        let limit = timeout(&metadata).map_or(limit, |asked| asked.min(limit));
        let client = extensions.get::<Client>().cloned();
        let is_crowded = Crowded::is_in(extensions);
        let metadata = Arc::new(metadata);
        Caller { arrived, latest: arrived + limit, metadata, client, is_crowded }
    }

    pub(super) async fn infer(
        &self,
        message: ModelInferRequest,
        caller: &Caller,
    ) -> Result<Response<ModelInferResponse>> {
        let decoded = self.decode(message, caller).await?;
        let Answered { message, origin, trace } = self.run(decoded, caller, &[]).await?;
        let mut headers = HeaderMap::new();
        origin.write(&mut headers);
        trace.write(&mut headers);
        Ok(Response::from_parts(MetadataMap::from_headers(headers), message, Extensions::new()))
    }

    pub(super) async fn decode(
        &self,
        mut message: ModelInferRequest,
        caller: &Caller,
    ) -> Result<Decoded> {
        let received = Instant::now();
        let target = Target {
            name: std::mem::take(&mut message.model_name),
            version: std::mem::take(&mut message.model_version),
        };
        let headers = (*caller.metadata).as_ref();
        let mut trace =
            self.plane.tracer.begin(Protocol::Grpc, headers, &target.name, caller.arrived);
        let limits = self.plane.limits.clone();
        let heavy = is_large(message.typed_bytes());
        let request = off_worker(heavy, move || message.decode_infer(&limits)).await;
        let request = request.flatten().inspect_err(|error| trace.ended(Some(error)))?;
        let decoded = Instant::now();
        trace.decoded(received, decoded);
        Ok(Decoded { target, request, trace, received, decoded })
    }

    /// Runs a request and encodes its answer, with `parameters` of our own.
    pub(super) async fn run(
        &self,
        mut request: Decoded,
        caller: &Caller,
        parameters: &[(&str, bool)],
    ) -> Result<Answered> {
        let outcome = self.run_traced(&mut request, caller, parameters).await;
        request.trace.ended(outcome.as_ref().err());
        let (message, origin) = outcome?;
        Ok(Answered { message, origin, trace: request.trace })
    }

    async fn run_traced(
        &self,
        decoded: &mut Decoded,
        caller: &Caller,
        parameters: &[(&str, bool)],
    ) -> Result<(ModelInferResponse, Origin)> {
        let Decoded { target, request, trace, received, decoded } = decoded;
        let asked = Asked {
            name: &target.name,
            version: Some(target.version.as_str()).filter(|version| !version.is_empty()),
            arrived: caller.arrived,
            latest: caller.latest,
            headers: (*caller.metadata).as_ref(),
            client: caller.client.as_ref(),
            trace: trace.context(),
            steps: trace.steps(),
            is_crowded: caller.is_crowded,
        };
        let answer = self.plane.infer(asked, request).await?;
        trace.answered(*decoded, &answer);
        let answered = Instant::now();
        let reply = InferReply {
            model_name: &target.name,
            model_version: answer.revision.version(),
            variant: Some(&answer.variant),
            outputs: &answer.outputs,
        };
        let encoded = encode_infer(&reply, request, parameters, &*self.plane.regions)?;
        trace.encoded(answered);
        let elsewhere = answer.timings.queue + answer.timings.compute_infer;
        self.plane.observer.grpc.answered(Overhead {
            decode: *decoded - *received,
            encode: answered.elapsed(),
            total: received.elapsed().saturating_sub(elsewhere),
        });
        Ok((encoded, Origin::of(&answer)))
    }
}

/// A request that was decoded.
pub(super) struct Decoded {
    target: Target,
    request: InferRequest,
    trace: RequestTrace,
    received: Instant,
    decoded: Instant,
}

impl Decoded {
    pub(super) fn is_in_sequence(&self) -> bool {
        self.request.sequence.is_some()
    }
}

/// A request that was answered.
pub(super) struct Answered {
    pub(super) message: ModelInferResponse,
    origin: Origin,
    trace: RequestTrace,
}

/// The model that a request asks.
struct Target {
    name: String,
    /// Empty for the live version.
    version: String,
}

/// `grpc-timeout`: up to eight digits and a unit. What is no timeout is
/// ignored, as gRPC's servers do.
fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_units() {
        for (text, want) in [
            ("1S", Some(1_000_000_000)),
            ("20m", Some(20_000_000)),
            ("99999999n", Some(99_999_999)),
            ("2H", Some(7_200_000_000_000)),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("+1S", None),
            ("1s", None),
            ("1é", None),
        ] {
            let mut metadata = MetadataMap::new();
            let Ok(value) = text.parse() else { continue };
            metadata.insert("grpc-timeout", value);
            assert_eq!(timeout(&metadata).map(|time| time.as_nanos()), want, "{text}");
        }
    }
}
