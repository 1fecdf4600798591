use super::{Plane, is_large, off_worker};
use crate::auth::Client;
use http::{HeaderMap, HeaderName, HeaderValue};
use mortise_serve::{InferAnswer, InferCall, RequestFacts, SequenceId, SequenceStep, StepLog};
use mortise_types::{Result, TraceContext};
use mortise_wire::{InferRequest, Parameter, Parameters, Sequence};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

/// Which model a request asks, and when.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) name: &'a str,
    /// `None` for the live version.
    pub(crate) version: Option<&'a str>,
    pub(crate) arrived: Instant,
    /// The latest time for the answer.
    pub(crate) latest: Instant,
    /// Headers, or gRPC's metadata.
    pub(crate) headers: &'a HeaderMap,
    /// Who showed an API key.
    pub(crate) client: Option<&'a Client>,
    /// The trace that the request belongs to.
    pub(crate) trace: Option<&'a TraceContext>,
    /// Where the steps of an ensemble are noted, when the request is traced.
    pub(crate) steps: Option<&'a StepLog>,
    /// Whether more requests of the same connection were under way.
    pub(crate) is_crowded: bool,
}

/// The version that answered, and what it is called among those that share the
/// traffic.
pub(crate) struct Origin {
    version: u64,
    variant: Arc<str>,
}

const VERSION: HeaderName = HeaderName::from_static("mortise-version");
const VARIANT: HeaderName = HeaderName::from_static("mortise-variant");

impl Origin {
    pub(crate) fn of(answer: &InferAnswer) -> Self {
        Self { version: answer.revision.version(), variant: answer.variant.clone() }
    }

    /// Names the version in the headers of a reply.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        headers.insert(VERSION, self.version.into());
        if let Ok(variant) = HeaderValue::from_str(&self.variant) {
            headers.insert(VARIANT, variant);
        }
    }
}

/// What routers may look at in a request.
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

impl Plane {
    /// Runs a decoded request. What says how to encode the answer stays in
    /// `request`.
    ///
    /// # Errors
    /// What the registry refuses, and shared memory that cannot be read.
    pub(crate) async fn infer(
        &self,
        asked: Asked<'_>,
        request: &mut InferRequest,
    ) -> Result<InferAnswer> {
        self.read_shared(request).await?;
        let inputs = std::mem::take(&mut request.inputs);
        let sequence = request.sequence.take().map(sequence_step);
        let outputs = request.outputs.as_ref();
        let facts = Facts { headers: asked.headers, parameters: &request.parameters };
        let call = InferCall {
            endpoint: asked.name,
            version: asked.version,
            inputs: inputs.into_iter().map(|input| (input.name, input.tensor)).collect(),
            outputs: outputs.map(|list| list.iter().map(|output| output.name.clone()).collect()),
            arrived: Some(asked.arrived),
            deadline: Some(asked.latest),
            timeout: request.timeout,
            priority: request.priority,
            sequence,
            facts: Some(&facts),
            client_key: asked.client.map(|client| &*client.0),
            trace: asked.trace,
            steps: asked.steps,
            is_crowded: asked.is_crowded,
        };
        self.registry.infer(call).await
    }

    /// Copies inputs that are in shared memory.
    async fn read_shared(&self, request: &mut InferRequest) -> Result<()> {
        if request.shared_inputs.is_empty() {
            return Ok(());
        }
        let bytes = usize::try_from(request.shared_bytes()).unwrap_or(usize::MAX);
        let mut taken = std::mem::take(request);
        let regions = self.regions.clone();
        let read = move || taken.read_shared(&*regions).map(|()| taken);
        *request = off_worker(is_large(bytes), read).await??;
        Ok(())
    }
}

fn sequence_step(sequence: Sequence) -> SequenceStep {
    let id = match sequence.id {
        mortise_wire::SequenceId::Number(number) => SequenceId::Number(number),
        mortise_wire::SequenceId::Text(text) => SequenceId::Text(text),
    };
    SequenceStep { id, start: sequence.start, end: sequence.end }
}
