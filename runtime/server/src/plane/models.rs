use super::Plane;
use mortise_serve::{Endpoint, Lineup, Readiness, Revision, Stage, VersionStatsSnapshot};
use mortise_types::{Error, Result};
use mortise_wire::IndexEntry;
use std::sync::Arc;

pub(crate) const SERVER_NAME: &str = "mortise";
pub(crate) const SERVER_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The extensions that are served, whatever the configuration.
const EXTENSIONS: [&str; 11] = [
    "binary_tensor_data",
    "classification",
    "generate",
    "logging",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "sequence",
    "statistics",
    "trace",
];

impl Plane {
    /// The extensions that are served, all of them and no others.
    pub(crate) fn extensions(&self) -> Vec<&'static str> {
        let mut extensions = EXTENSIONS.to_vec();
        if self.regions.is_on() {
            extensions.push("system_shared_memory");
            extensions.sort_unstable();
        }
        extensions
    }

    /// # Errors
    /// `NotFound` for an unknown name.
    pub(crate) fn endpoint(&self, name: &str) -> Result<Arc<Endpoint>> {
        self.registry
            .endpoint(name)
            .ok_or_else(|| Error::not_found(format!("unknown model \"{name}\"")))
    }

    /// The versions that answer for a model, the stable one first.
    pub(crate) fn versions(&self, name: &str) -> Vec<u64> {
        let lineup = self.registry.endpoint(name).and_then(|endpoint| endpoint.lineup());
        let variants = lineup.iter().flat_map(|lineup| lineup.variants());
        variants.map(|variant| variant.revision.version()).collect()
    }

    /// The revision that describes a model: of the version that is named, or the
    /// stable one.
    ///
    /// # Errors
    /// `NotFound` for an unknown name or version, `NotReady` without a live
    /// revision.
    pub(crate) fn live(&self, name: &str, version: Option<&str>) -> Result<Arc<Revision>> {
        let endpoint = self.endpoint(name)?;
        let lineup = endpoint.lineup().ok_or_else(|| Error::not_ready(why_not_ready(&endpoint)))?;
        find_version(name, version, &lineup)
    }

    /// `None` when the model is ready, or why not.
    ///
    /// # Errors
    /// `NotFound` for an unknown name or version.
    pub(crate) fn not_ready(&self, name: &str, version: Option<&str>) -> Result<Option<String>> {
        let endpoint = self.endpoint(name)?;
        let readiness = match endpoint.lineup() {
            Some(lineup) => endpoint.readiness_of(&*find_version(name, version, &lineup)?),
            None => endpoint.readiness(),
        };
        Ok(readiness.obstacle())
    }

    pub(crate) fn index(&self, ready_only: bool) -> Vec<IndexEntry> {
        let endpoints = self.registry.list();
        let entries = endpoints.iter().flat_map(|endpoint| index_entries(endpoint));
        entries.filter(|entry| !ready_only || entry.is_ready()).collect()
    }

    /// Statistics of one model, or of all with `None`.
    ///
    /// # Errors
    /// `NotFound` for an unknown name or version.
    pub(crate) fn statistics(
        &self,
        name: Option<&str>,
        version: Option<&str>,
    ) -> Result<Vec<ModelStatistics>> {
        let endpoints = match name {
            None => self.registry.list(),
            Some(name) => vec![self.endpoint(name)?],
        };
        let mut all = Vec::new();
        for endpoint in &endpoints {
            let wanted = |revision: &&Arc<Revision>| {
                version.is_none_or(|wanted| wanted.parse() == Ok(revision.version()))
            };
            all.extend(endpoint.revisions().iter().filter(wanted).map(|revision| {
                ModelStatistics {
                    name: endpoint.name().to_owned(),
                    memory_bytes: revision.memory_bytes(),
                    stats: revision.stats_snapshot(),
                }
            }));
        }
        if let (true, Some(name), Some(version)) = (all.is_empty(), name, version) {
            return Err(Error::not_found(format!("model \"{name}\" has no version \"{version}\"")));
        }
        Ok(all)
    }
}

/// Checks the parameters of a load or unload: each name, and whether its value
/// is `false`. Clients may send a configuration or files to load a model with;
/// here that is a deployment.
///
/// # Errors
/// `Unsupported` for what would have no effect.
pub(crate) fn check_repository_parameters<'a>(
    mut parameters: impl Iterator<Item = (&'a str, bool)>,
) -> Result<()> {
    match parameters.find(|&(name, is_false)| name != "unload_dependents" || !is_false) {
        None => Ok(()),
        Some(("unload_dependents", _)) => Err(Error::unsupported(
            "parameter \"unload_dependents\": models are unloaded one by one; unload each",
        )),
        Some((name, _)) => Err(Error::unsupported(format!(
            "parameter {name:?}: a model is loaded as it was deployed; deploy a new version instead"
        ))),
    }
}

/// What is counted about one version of a model.
pub(crate) struct ModelStatistics {
    pub(crate) name: String,
    /// Weights and working memory of its graphs.
    pub(crate) memory_bytes: u64,
    pub(crate) stats: VersionStatsSnapshot,
}

impl ModelStatistics {
    /// Milliseconds since 1970; 0 for never.
    pub(crate) fn last_inference_ms(&self) -> u64 {
        let since = |time: std::time::SystemTime| time.duration_since(std::time::UNIX_EPOCH).ok();
        let last = self.stats.last_inference.and_then(since).unwrap_or_default();
        u64::try_from(last.as_millis()).unwrap_or(u64::MAX)
    }
}

fn find_version(name: &str, version: Option<&str>, lineup: &Lineup) -> Result<Arc<Revision>> {
    let Some(wanted) = version else { return Ok(lineup.stable().revision.clone()) };
    let found = wanted.parse().ok().and_then(|number| lineup.of_version(number));
    found.map(|variant| variant.revision.clone()).ok_or_else(|| {
        Error::not_found(format!(
            "model \"{name}\" has no version \"{wanted}\"; {}",
            lineup.versions()
        ))
    })
}

fn why_not_ready(endpoint: &Endpoint) -> String {
    // It may have become ready since it was looked at.
    let since = || format!("model \"{}\" is not ready: it is loading", endpoint.name());
    endpoint.readiness().obstacle().unwrap_or_else(since)
}

/// One for each version that answers; one without a version where none does.
fn index_entries(endpoint: &Endpoint) -> Vec<IndexEntry> {
    let entry = |version: Option<u64>, readiness: Readiness| {
        IndexEntry::new(endpoint.name(), version, readiness.obstacle())
    };
    let revisions = endpoint.revisions();
    if revisions.is_empty() {
        return vec![entry(None, endpoint.readiness())];
    }
    let of_version =
        |revision: &Arc<Revision>| entry(Some(revision.version()), endpoint.readiness_of(revision));
    revisions.iter().map(of_version).collect()
}

/// The plugin that runs a model.
pub(crate) fn platform(revision: &Revision) -> &str {
    revision.model().map_or("", |model| model.name.as_str())
}

/// Facts about a revision for its configuration.
pub(crate) fn config_parameters(revision: &Revision) -> Vec<(&'static str, String)> {
    let stages: Vec<&str> = revision.stages().iter().flat_map(Stage::plugins).collect();
    let mut parameters = vec![
        ("revision", revision.number().to_string()),
        ("stages", stages.join(",")),
        ("plugin_digest", revision.model().map(|model| model.digest.clone()).unwrap_or_default()),
    ];
    let precision = revision.model().and_then(|model| model.precision());
    parameters.extend(precision.map(|name| ("quantize", name.to_string())));
    parameters
}
