use crate::admission::{Admission, Budget, Permit};
use crate::rate_limit::RateLimiter;
use crate::revision::Revision;
use crate::sequence::SequenceTable;
use crate::stats::{Stats, StatsSnapshot};
use crate::version_stats::VersionStatsSnapshot;
use arc_swap::{ArcSwap, ArcSwapOption};
use mortise_host::PluginHealth;
use mortise_types::{Error, Result};
use std::sync::Arc;

/// A name that answers requests, and the revision that answers now.
pub struct Endpoint {
    name: String,
    /// Identifies the endpoint in the queues of the thread pools.
    pub(crate) lane: u64,
    live: ArcSwapOption<Revision>,
    /// Why there is no live revision, when there is none.
    absence: ArcSwap<String>,
    requests: Arc<Budget>,
    pub(crate) stats: Stats,
    pub(crate) rate_limiter: RateLimiter,
    pub(crate) sequences: SequenceTable,
}

/// Whether an endpoint can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// With the reason.
    NotReady(String),
}

impl Endpoint {
    pub(crate) fn new(name: &str, lane: u64, max_requests: usize) -> Self {
        Self {
            name: name.to_string(),
            lane,
            live: ArcSwapOption::empty(),
            absence: ArcSwap::from_pointee("it is loading".to_string()),
            requests: Budget::new(max_requests as u64),
            stats: Stats::default(),
            rate_limiter: RateLimiter::default(),
            sequences: SequenceTable::default(),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The revision that answers requests from now on. Whoever holds it keeps
    /// it from being dropped, so hold it no longer than a request.
    pub fn live(&self) -> Option<Arc<Revision>> {
        self.live.load_full()
    }

    /// Whether a request would be run now: there is a live revision and none of
    /// its plugins is in quarantine.
    pub fn readiness(&self) -> Readiness {
        match self.current(None) {
            Ok(_) => Readiness::Ready,
            Err(error) => Readiness::NotReady(error.message().to_string()),
        }
    }

    pub fn stats(&self) -> StatsSnapshot {
        self.stats.snapshot(self.requests.used())
    }

    /// Sequences that have begun and not ended.
    pub fn open_sequences(&self) -> usize {
        self.sequences.count()
    }

    /// Statistics of each version that answers now.
    pub fn version_stats(&self) -> Vec<VersionStatsSnapshot> {
        self.live().iter().map(|revision| revision.stats_snapshot()).collect()
    }

    /// The revision for one request.
    ///
    /// # Errors
    /// [`mortise_types::ErrorKind::NotReady`] without a live revision or with a
    /// plugin in quarantine, [`mortise_types::ErrorKind::NotFound`] when
    /// `version` is not the one that is live.
    pub(crate) fn current(&self, version: Option<&str>) -> Result<Arc<Revision>> {
        let revision = self.live().ok_or_else(|| {
            Error::not_ready(format!(
                "model \"{}\" is not ready: {}",
                self.name,
                self.absence.load()
            ))
        })?;
        if version.is_some_and(|wanted| wanted.parse() != Ok(revision.version())) {
            return Err(Error::not_found(format!(
                "model \"{}\" has no version \"{}\"; version {} is live",
                self.name,
                version.unwrap_or_default(),
                revision.version()
            )));
        }
        match revision.quarantine() {
            None => Ok(revision),
            Some((plugin, health)) => Err(self.quarantined(plugin, &health)),
        }
    }

    fn quarantined(&self, plugin: &str, health: &PluginHealth) -> Error {
        let detail = match health {
            PluginHealth::Ready => String::new(),
            PluginHealth::Quarantined { reason, retry_in } => {
                format!(": {reason}; it is tried again in {} ms", retry_in.as_millis())
            }
        };
        Error::not_ready(format!(
            "model \"{}\" is not ready: plugin \"{plugin}\" is in quarantine{detail}",
            self.name
        ))
    }

    pub(crate) fn admit(&self, bytes: &Arc<Budget>, input_bytes: usize) -> Result<Permit> {
        let admission = Admission { endpoint: &self.name, requests: &self.requests, bytes };
        admission.admit(input_bytes as u64)
    }

    /// The one store that makes a revision live.
    pub(crate) fn swap(&self, revision: Option<Arc<Revision>>) -> Option<Arc<Revision>> {
        self.live.swap(revision)
    }

    pub(crate) fn set_absence(&self, reason: &str) {
        self.absence.store(Arc::new(reason.to_string()));
    }
}
