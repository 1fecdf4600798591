use http::{HeaderMap, HeaderName, HeaderValue};
use mortise_types::TraceContext;
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt};
use opentelemetry_sdk::propagation::TraceContextPropagator;

const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// The span of the client in whose course a request came.
pub(super) struct Parent(SpanContext);

impl Parent {
    /// `None` where the headers have no trace context, or one that is none.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        headers.get(TRACE_PARENT)?;
        let propagator = TraceContextPropagator::new();
        let context = propagator.extract_with_context(&Context::new(), &Headers(headers));
        let span = context.span().span_context().clone();
        span.is_valid().then_some(Self(span))
    }

    pub(super) fn is_sampled(&self) -> bool {
        self.0.is_sampled()
    }

    pub(super) fn span(&self) -> &SpanContext {
        &self.0
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

/// A span as another server is told of it.
pub(super) fn told(span: &SpanContext) -> TraceContext {
    let parent =
        format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8() & 1);
    TraceContext { parent, state: span.trace_state().header() }
}

/// Tells another server of the span in whose course it is asked.
pub(crate) fn write(trace: Option<&TraceContext>, headers: &mut HeaderMap) {
    let Some(TraceContext { parent, state }) = trace else { return };
    for (name, text) in [("traceparent", parent), ("tracestate", state)] {
        if let (false, Ok(value)) = (text.is_empty(), HeaderValue::from_str(text)) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_read_and_told() {
        let id = "0af7651916cd43dd8448eb211c80319c";
        let cases = [
            (format!("00-{id}-b7ad6b7169203331-01"), Some(true)),
            (format!("00-{id}-b7ad6b7169203331-00"), Some(false)),
            // A later version may have more to say.
            (format!("01-{id}-b7ad6b7169203331-01-more"), Some(true)),
            (format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)), None),
            (format!("ff-{id}-b7ad6b7169203331-01"), None),
            (format!("00-{id}-b7ad6b7169203331"), None),
            ("nothing".to_owned(), None),
        ];
        for (text, sampled) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(TRACE_PARENT, text.parse().unwrap());
            headers.insert("tracestate", "vendor=x".parse().unwrap());
            let parent = Parent::of(&headers);
            assert_eq!(parent.as_ref().map(Parent::is_sampled), sampled, "{text}");
            let Some(parent) = parent.filter(|_| text.starts_with("00")) else { continue };
            let mut passed = HeaderMap::new();
            write(Some(&told(parent.span())), &mut passed);
            assert_eq!(passed, headers);
        }
        assert!(Parent::of(&HeaderMap::new()).is_none());
    }
}
