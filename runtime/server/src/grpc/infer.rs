use super::Service;
use crate::auth::Client;
use crate::plane::infer::{Asked, Origin};
use crate::plane::{is_large, off_worker};
use http::HeaderMap;
use mortise_grpc_proto::{ModelInferRequest, ModelInferResponse, encode_infer};
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
}

impl Caller {
    /// Of a request within a stream, which begins later than the call.
    pub(super) fn again(&self, limit: Duration) -> Self {
        let arrived = Instant::now();
        Self { arrived, latest: arrived + limit, ..self.clone() }
    }
}

impl Service {
    pub(super) fn caller(&self, metadata: MetadataMap, extensions: &Extensions) -> Caller {
        let arrived = Instant::now();
        let limit = self.settings.request_timeout;
        let limit = timeout(&metadata).map_or(limit, |asked| asked.min(limit));
        let client = extensions.get::<Client>().cloned();
        Caller { arrived, latest: arrived + limit, metadata: Arc::new(metadata), client }
    }

    pub(super) async fn infer(
        &self,
        message: ModelInferRequest,
        caller: &Caller,
    ) -> Result<Response<ModelInferResponse>> {
        let (target, request) = self.decode(message).await?;
        let (message, origin) = self.run(target, request, caller, &[]).await?;
        let mut headers = HeaderMap::new();
        origin.write(&mut headers);
        Ok(Response::from_parts(MetadataMap::from_headers(headers), message, Extensions::new()))
    }

    pub(super) async fn decode(
        &self,
        mut message: ModelInferRequest,
    ) -> Result<(Target, InferRequest)> {
        let target = Target {
            name: std::mem::take(&mut message.model_name),
            version: std::mem::take(&mut message.model_version),
        };
        let limits = self.plane.limits.clone();
        let heavy = is_large(message.typed_bytes());
        let request = off_worker(heavy, move || message.decode_infer(&limits)).await??;
        Ok((target, request))
    }

    /// Runs a request and encodes its answer, with `parameters` of our own.
    pub(super) async fn run(
        &self,
        target: Target,
        mut request: InferRequest,
        caller: &Caller,
        parameters: &[(&str, bool)],
    ) -> Result<(ModelInferResponse, Origin)> {
        let asked = Asked {
            name: &target.name,
            version: Some(target.version.as_str()).filter(|version| !version.is_empty()),
            arrived: caller.arrived,
            latest: caller.latest,
            headers: (*caller.metadata).as_ref(),
            client: caller.client.as_ref(),
        };
        let answer = self.plane.infer(asked, &mut request).await?;
        let reply = InferReply {
            model_name: &target.name,
            model_version: answer.revision.version(),
            variant: Some(&answer.variant),
            outputs: &answer.outputs,
        };
        let encoded = encode_infer(&reply, &request, parameters, &*self.plane.regions)?;
        Ok((encoded, Origin::of(&answer)))
    }
}

/// The model that a request asks.
pub(super) struct Target {
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
