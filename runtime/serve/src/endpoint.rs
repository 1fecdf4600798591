use crate::admission::{Admission, Budget, Permit};
use crate::lineup::{Lineup, Route};
use crate::rate_limit::RateLimiter;
use crate::revision::Revision;
use crate::routing::RequestFacts;
use crate::sequence::SequenceTable;
use crate::stats::{Stats, StatsSnapshot};
use crate::version_stats::VersionStatsSnapshot;
use arc_swap::{ArcSwap, ArcSwapOption};
use mortise_host::PluginHealth;
use mortise_types::{Error, Result, Tensor};
use std::sync::Arc;

/// A name that answers requests, and the versions that answer now.
pub struct Endpoint {
    name: String,
    /// Identifies the endpoint in the queues of the thread pools.
    pub(crate) lane: u64,
    lineup: ArcSwapOption<Lineup>,
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

impl Readiness {
    /// Why not; `None` when it can.
    pub fn obstacle(self) -> Option<String> {
        match self {
            Self::Ready => None,
            Self::NotReady(why) => Some(why),
        }
    }
}

impl Endpoint {
    pub(crate) fn new(name: &str, lane: u64, max_requests: usize) -> Self {
        Self {
            name: name.to_string(),
            lane,
            lineup: ArcSwapOption::empty(),
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

    /// The revision that answers requests from now on, the stable one of
    /// several. Whoever holds it keeps it from being dropped, so hold it no
    /// longer than a request.
    pub fn live(&self) -> Option<Arc<Revision>> {
        self.lineup.load().as_ref().map(|lineup| lineup.stable().revision.clone())
    }

    /// All versions that answer requests from now on, with their shares.
    pub fn lineup(&self) -> Option<Arc<Lineup>> {
        self.lineup.load_full()
    }

    /// Whether a request would be run now: there is a live revision and none of
    /// its plugins is in quarantine.
    pub fn readiness(&self) -> Readiness {
        match self.current() {
            Ok(_) => Readiness::Ready,
            Err(error) => Readiness::NotReady(error.message().to_string()),
        }
    }

    /// The same for one of its versions.
    pub fn readiness_of(&self, revision: &Revision) -> Readiness {
        match self.check(revision) {
            Ok(()) => Readiness::Ready,
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

    /// Each version that answers now, ascending.
    pub fn revisions(&self) -> Vec<Arc<Revision>> {
        let lineup = self.lineup();
        let variants = lineup.iter().flat_map(|lineup| lineup.variants());
        let mut revisions: Vec<_> = variants.map(|variant| variant.revision.clone()).collect();
        revisions.sort_by_key(|revision| revision.version());
        revisions
    }

    /// Statistics of each version that answers now, ascending.
    pub fn version_stats(&self) -> Vec<VersionStatsSnapshot> {
        self.revisions().iter().map(|revision| revision.stats_snapshot()).collect()
    }

    /// Where one request goes: to the version that it names, or to the one that
    /// the router chooses.
    ///
    /// # Errors
    /// [`mortise_types::ErrorKind::NotReady`] without a live version,
    /// [`mortise_types::ErrorKind::NotFound`] when `version` is not live.
    pub(crate) fn route(
        &self,
        version: Option<&str>,
        facts: Option<&dyn RequestFacts>,
        inputs: &[(String, Tensor)],
    ) -> Result<Route> {
        let lineup = self.lineup_or_absence()?;
        match version {
            None => Ok(lineup.route(facts, inputs)),
            Some(version) => lineup.named(&self.name, version),
        }
    }

    /// The stable revision, if it can answer now.
    ///
    /// # Errors
    /// [`mortise_types::ErrorKind::NotReady`] without a live revision or with a
    /// plugin in quarantine.
    pub(crate) fn current(&self) -> Result<Arc<Revision>> {
        let revision = self.lineup_or_absence()?.stable().revision.clone();
        self.check(&revision).map(|()| revision)
    }

    pub(crate) fn lineup_or_absence(&self) -> Result<Arc<Lineup>> {
        self.lineup().ok_or_else(|| {
            Error::not_ready(format!(
                "model \"{}\" is not ready: {}",
                self.name,
                self.absence.load()
            ))
        })
    }

    /// # Errors
    /// [`mortise_types::ErrorKind::NotReady`] with a plugin in quarantine.
    pub(crate) fn check(&self, revision: &Revision) -> Result<()> {
        match revision.quarantine() {
            None => Ok(()),
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

    /// The one store that makes versions live.
    pub(crate) fn swap(&self, lineup: Option<Arc<Lineup>>) -> Option<Arc<Lineup>> {
        self.lineup.swap(lineup)
    }

    pub(crate) fn set_absence(&self, reason: &str) {
        self.absence.store(Arc::new(reason.to_string()));
    }
}
