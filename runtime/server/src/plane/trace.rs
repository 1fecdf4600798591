//! The trace extension. Tracing is set up in the server's configuration; the
//! extension shows that per-request traces to files are off, and says so when
//! a client wants to switch them on.

use mortise_types::{Error, Result};

/// The settings by name; a list has several values.
const SETTINGS: [(&str, &[&str]); 6] = [
    ("trace_file", &[""]),
    ("trace_level", &["OFF"]),
    ("trace_rate", &["1000"]),
    ("trace_count", &["-1"]),
    ("log_frequency", &["0"]),
    ("trace_mode", &["triton"]),
];

/// The settings as they are.
pub(crate) fn settings() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    SETTINGS.into_iter()
}

/// Whether a setting is a list in JSON.
pub(crate) fn is_list(name: &str) -> bool {
    name == "trace_level"
}

/// Accepts what changes nothing: the present value, or none, which clears.
///
/// # Errors
/// `Unsupported` for another value, `InvalidInput` for an unknown setting.
pub(crate) fn update(name: &str, values: &[String]) -> Result<()> {
    let Some((_, present)) = SETTINGS.iter().find(|(known, _)| *known == name) else {
        let known: Vec<&str> = SETTINGS.iter().map(|(name, _)| *name).collect();
        return Err(Error::invalid(format!(
            "there is no trace setting {name:?}; there are {}",
            known.join(", ")
        )));
    };
    if values.is_empty() || values == *present {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "{name}: tracing is set up in the server's configuration, not by clients"
    )))
}

#[cfg(test)]
mod tests {
    use mortise_types::ErrorKind;

    #[test]
    fn only_what_changes_nothing_is_accepted() {
        let update = |name, values: &[&str]| {
            let values: Vec<String> = values.iter().map(|&value| value.to_owned()).collect();
            super::update(name, &values).map_err(|error| error.kind())
        };
        assert_eq!(update("trace_level", &["OFF"]), Ok(()));
        assert_eq!(update("trace_rate", &[]), Ok(()));
        assert_eq!(update("trace_level", &["TIMESTAMPS"]), Err(ErrorKind::Unsupported));
        assert_eq!(update("trace_colour", &["red"]), Err(ErrorKind::InvalidInput));
    }
}
