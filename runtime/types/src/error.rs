use std::fmt;
use std::time::Duration;

/// What a caller can do about an [`Error`]. HTTP and gRPC statuses are derived
/// from it in one place in `mortise-server`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request or file is wrong; sending it again will not help.
    InvalidInput,
    /// The named model, version, asset or deployment does not exist.
    NotFound,
    /// Understood, but not implemented: names the operator, type or option.
    Unsupported,
    /// A body, artifact or field is over its size limit.
    TooLarge,
    /// The action is switched off by configuration or needs a credential.
    Forbidden,
    /// The action collides with another one under way.
    Conflict,
    /// A queue, pool or memory budget is full; try again later.
    Overloaded,
    /// A client or an endpoint is over the rate that it may have.
    RateLimited,
    /// The model exists but cannot answer now (loading, quarantined, draining).
    NotReady,
    /// The deadline passed before an answer was ready.
    Deadline,
    /// A configured limit on a plugin or graph was hit; names limit and value.
    LimitExceeded,
    /// The plugin trapped, panicked, or reported a failure.
    PluginFailed,
    /// A bug or an environment failure (disk, database).
    Internal,
}

/// An error whose message reaches whoever sent the request or deployment.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    retry_after: Option<Duration>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! constructors {
    ($($name:ident => $kind:ident),* $(,)?) => {
        $(#[doc = concat!("An error of kind [`ErrorKind::", stringify!($kind), "`].")]
        pub fn $name(message: impl Into<String>) -> Self {
            Self::new(ErrorKind::$kind, message)
        })*
    };
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), retry_after: None }))
    }

    constructors! {
        invalid => InvalidInput,
        not_found => NotFound,
        unsupported => Unsupported,
        too_large => TooLarge,
        forbidden => Forbidden,
        conflict => Conflict,
        overloaded => Overloaded,
        rate_limited => RateLimited,
        not_ready => NotReady,
        deadline => Deadline,
        limit => LimitExceeded,
        plugin => PluginFailed,
        internal => Internal,
    }

    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// When another try makes sense, where that is known better than by kind.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The same error, saying when another try makes sense.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// Puts `prefix: ` before the message, keeping the kind.
    #[must_use]
    pub fn context(mut self, prefix: impl fmt::Display) -> Self {
        self.0.message = format!("{prefix}: {}", self.0.message);
        self
    }

    /// The same message under another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({:?})", self.0.kind, self.0.message)
    }
}

impl std::error::Error for Error {}
