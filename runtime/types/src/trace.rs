/// The place of a request in a distributed trace, as another server is told of
/// it: the values of the headers of W3C's Trace Context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// `traceparent`
    pub parent: String,
    /// `tracestate`; empty for none.
    pub state: String,
}
