use mortise_types::{Error, Result};
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// Where a deployment stands. A stage is *entered* when the work that leads to
/// it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stage {
    /// Its files are in the store, complete and on disk.
    Uploaded,
    /// Every component fits its world.
    Verified,
    /// Components and graphs are compiled, plugins are loaded, memory is
    /// reserved, and the parts fit each other.
    Compiled,
    /// The tests that travel with it passed.
    SelfTested,
    /// It has answered once, so that caches and arenas are filled.
    Warmed,
    /// It is committed and answers requests.
    Live,
    /// Replaced; requests that began on it are still running.
    Draining,
    /// Nothing refers to it any more.
    Retired,
}

impl Stage {
    /// The stages that [`crate::Deployer::deploy`] goes through, in order.
    pub const DEPLOYMENT: [Stage; 6] = [
        Stage::Uploaded,
        Stage::Verified,
        Stage::Compiled,
        Stage::SelfTested,
        Stage::Warmed,
        Stage::Live,
    ];

    /// `self_tested`, as in JSON and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uploaded => "uploaded",
            Self::Verified => "verified",
            Self::Compiled => "compiled",
            Self::SelfTested => "self_tested",
            Self::Warmed => "warmed",
            Self::Live => "live",
            Self::Draining => "draining",
            Self::Retired => "retired",
        }
    }

    /// What it means that a deployment does not reach this stage, for people who
    /// do not know the stages; `None` where the reason says it all.
    fn trouble(self) -> Option<&'static str> {
        match self {
            Self::Uploaded | Self::Draining | Self::Retired => None,
            Self::Verified => Some("a plugin was refused"),
            Self::Compiled => Some("it could not be built"),
            Self::SelfTested => Some("the self-tests failed"),
            Self::Warmed => Some("it could not be made ready"),
            Self::Live => Some("it could not go live"),
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Told about every stage as it is entered, on the thread that does the work.
pub trait StageObserver: Send + Sync {
    /// # Errors
    /// An error fails the deployment in this stage, which is how tests inject
    /// faults. For [`Stage::Draining`] and [`Stage::Retired`] it is ignored.
    fn entered(&self, endpoint: &str, stage: Stage) -> Result<()>;
}

/// Observes nothing.
pub struct NoObserver;

impl StageObserver for NoObserver {
    fn entered(&self, _endpoint: &str, _stage: Stage) -> Result<()> {
        Ok(())
    }
}

/// How long a stage took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StageTiming {
    pub stage: Stage,
    /// Microseconds from entering this stage to leaving it.
    pub duration_us: u64,
}

impl StageTiming {
    pub(crate) fn new(stage: Stage, duration: Duration) -> Self {
        Self { stage, duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX) }
    }
}

/// A deployment that did not go live. What was live before still is.
#[derive(Clone, Debug)]
pub struct Failure {
    pub endpoint: String,
    /// The stage that could not be reached; `None` when the deployment was
    /// refused before it began (a bad name, another one under way).
    pub stage: Option<Stage>,
    pub reason: Error,
    /// The stages that were passed.
    pub stages: Vec<StageTiming>,
}

impl Failure {
    /// `the self-tests failed: …`
    pub(crate) fn explained(&self) -> Error {
        let reason = self.reason.clone();
        match self.stage.and_then(Stage::trouble) {
            Some(trouble) => reason.context(trouble),
            None => reason,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" was not deployed: {}", self.endpoint, self.explained())
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Error::new(failure.reason.kind(), failure.to_string())
    }
}
