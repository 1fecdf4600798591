use crate::bindings::model::mortise::plugin::types as raw;
use std::fmt;

/// Why a plugin could not do what it was asked to. The message reaches the
/// client, or whoever deploys: say what is wrong and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The request, the file or the configuration is wrong (HTTP 400).
    Invalid(String),
    /// Understood but not implemented; names the operator, type or option.
    Unsupported(String),
    /// The plugin or the host could not do its work (HTTP 500).
    Failed(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }

    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::Unsupported(message.into())
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    pub fn message(&self) -> &str {
        match self {
            Self::Invalid(message) | Self::Unsupported(message) | Self::Failed(message) => message,
        }
    }

    /// Puts `prefix: ` before the message, keeping the kind.
    #[must_use]
    pub fn context(self, prefix: impl fmt::Display) -> Self {
        match self {
            Self::Invalid(message) => Self::Invalid(format!("{prefix}: {message}")),
            Self::Unsupported(message) => Self::Unsupported(format!("{prefix}: {message}")),
            Self::Failed(message) => Self::Failed(format!("{prefix}: {message}")),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for Error {}

impl From<raw::Error> for Error {
    fn from(error: raw::Error) -> Self {
        match error {
            raw::Error::InvalidInput(message) => Self::Invalid(message),
            raw::Error::Unsupported(message) => Self::Unsupported(message),
            raw::Error::Failed(message) => Self::Failed(message),
        }
    }
}

impl From<Error> for raw::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid(message) => Self::InvalidInput(message),
            Error::Unsupported(message) => Self::Unsupported(message),
            Error::Failed(message) => Self::Failed(message),
        }
    }
}

/// Errors about data that came from outside: `?` makes them invalid input.
macro_rules! invalid_from {
    ($($ty:ty),* $(,)?) => {
        $(impl From<$ty> for Error {
            fn from(error: $ty) -> Self {
                Self::Invalid(error.to_string())
            }
        })*
    };
}

invalid_from! {
    serde_json::Error,
    std::str::Utf8Error,
    std::string::FromUtf8Error,
    std::num::ParseIntError,
    std::num::ParseFloatError,
    std::num::TryFromIntError,
}
