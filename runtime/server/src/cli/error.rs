use std::fmt;
use std::process::ExitCode;

/// A failure with what to do about it.
#[derive(Debug)]
pub(crate) struct CliError {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    /// The server could not be reached at all.
    pub(crate) is_unreachable: bool,
}

impl CliError {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: Some(hint.into()), is_unreachable: false }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CliError {}

/// `error: …`, then `hint: …` when there is one.
pub(crate) fn print_error(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
    if let Some(hint) = error.downcast_ref::<CliError>().and_then(|error| error.hint.as_ref()) {
        eprintln!("hint: {hint}");
    }
}

/// 1 for a failure, 3 when no server was reached; clap uses 2 for usage.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<CliError>() {
        Some(error) if error.is_unreachable => ExitCode::from(3),
        _ => ExitCode::FAILURE,
    }
}
