//! Traces of requests: W3C's trace context in, spans out as OTLP. A request
//! that is not traced costs a look for one header. Spans are made when a request
//! has ended, from the times that are measured anyway.

mod context;
mod export;
mod settings;
mod span;

pub(crate) use context::write;
pub(crate) use settings::{Setting, is_list};
pub(crate) use span::{Protocol, RequestTrace};

use crate::config::TracingSettings;
use anyhow::Result;
use context::Parent;
use export::Exporter;
use http::HeaderMap;
use mortise_observe::TraceCounters;
use settings::Sampling;
use span::Recorded;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Decides which requests are traced, and exports their spans.
pub(crate) struct Tracer {
    /// `None` where tracing is not configured.
    exporter: Option<Exporter>,
    sampling: Sampling,
}

impl Tracer {
    /// # Errors
    /// When the address of the collector cannot be used.
    pub(crate) fn new(
        settings: Option<&TracingSettings>,
        counters: TraceCounters,
    ) -> Result<Arc<Self>> {
        let exporter = settings.map(|settings| Exporter::start(settings, counters)).transpose()?;
        let sampling = Sampling::new(settings.map(|settings| settings.sample_every));
        Ok(Arc::new(Self { exporter, sampling }))
    }

    /// A tracer that traces nothing.
    #[cfg(test)]
    pub(crate) fn off() -> Arc<Self> {
        Arc::new(Self { exporter: None, sampling: Sampling::new(None) })
    }

    /// Begins the trace of a request. The client decides whether it is traced
    /// where its headers say so, else the sampling does.
    pub(crate) fn begin(
        self: &Arc<Self>,
        protocol: Protocol,
        headers: &HeaderMap,
        endpoint: &str,
        arrived: Instant,
    ) -> RequestTrace {
        let parent = Parent::of(headers);
        let is_traced = self.exporter.is_some()
            && self.sampling.is_on()
            && parent.as_ref().map_or_else(|| self.sampling.takes_next(), Parent::is_sampled);
        match is_traced {
            true => {
                let recorded = Recorded::new(self.clone(), protocol, parent, endpoint, arrived);
                RequestTrace::traced(recorded)
            }
            false => RequestTrace::passed_on(parent),
        }
    }

    /// Exports what waits, when the server ends; takes `limit` at most.
    pub(crate) fn finish(&self, limit: Duration) {
        if let Some(exporter) = &self.exporter {
            exporter.flush(limit);
        }
    }
}
