//! The trace extension: the settings that Triton's clients show and change.
//! Where traces go, and whether at all, is set in the server's configuration.

use super::Tracer;
use mortise_types::{Error, Result};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Which of the requests without a trace context of their own are traced.
pub(super) struct Sampling {
    is_on: AtomicBool,
    /// One request in this many.
    every: AtomicU64,
    /// What `every` is in the configuration; `None` without tracing.
    configured: Option<u64>,
    seen: AtomicU64,
}

impl Sampling {
    pub(super) fn new(configured: Option<u64>) -> Self {
        Self {
            is_on: AtomicBool::new(configured.is_some()),
            every: AtomicU64::new(configured.unwrap_or(DEFAULT_RATE)),
            configured,
            seen: AtomicU64::new(0),
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Whether the next request is one of those.
    pub(super) fn takes_next(&self) -> bool {
        let every = self.every.load(Ordering::Relaxed);
        self.seen.fetch_add(1, Ordering::Relaxed).is_multiple_of(every)
    }
}

/// What is told where tracing is not configured; Triton's own default.
const DEFAULT_RATE: u64 = 1_000;

const ON: &str = "TIMESTAMPS";
const OFF: &str = "OFF";

/// A setting with its values; a list has several.
pub(crate) type Setting = (&'static str, Vec<String>);

impl Tracer {
    /// The settings as they are.
    pub(crate) fn settings(&self) -> [Setting; 6] {
        let level = if self.sampling.is_on() { ON } else { OFF };
        let mode = if self.exporter.is_some() { "opentelemetry" } else { "triton" };
        let rate = self.sampling.every.load(Ordering::Relaxed).to_string();
        [
            ("trace_file", ""),
            ("trace_level", level),
            ("trace_rate", &rate),
            ("trace_count", "-1"),
            ("log_frequency", "0"),
            ("trace_mode", mode),
        ]
        .map(|(name, value)| (name, vec![value.to_owned()]))
    }

    /// Changes the level or the rate, of the server as a whole; without values,
    /// to what the configuration says. Accepts what changes nothing for every
    /// setting.
    ///
    /// # Errors
    /// `Unsupported` for another change, `InvalidInput` for an unknown setting
    /// or value.
    pub(crate) fn update(&self, model: Option<&str>, name: &str, values: &[String]) -> Result<()> {
        let settings = self.settings();
        let Some((_, present)) = settings.iter().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = settings.iter().map(|(name, _)| *name).collect();
            return Err(Error::invalid(format!(
                "there is no trace setting {name:?}; there are {}",
                known.join(", ")
            )));
        };
        if values == *present {
            return Ok(());
        }
        let configured = match (self.sampling.configured, model) {
            (Some(configured), None) => configured,
            _ if values.is_empty() => return Ok(()),
            (Some(_), Some(_)) => {
                return Err(Error::unsupported(format!(
                    "{name}: trace settings are those of the whole server; change them without a \
                     model"
                )));
            }
            (None, _) => {
                return Err(Error::unsupported(format!(
                    "{name}: tracing is off; set tracing.endpoint in the server's configuration"
                )));
            }
        };
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        match (name, values.as_slice()) {
            ("trace_level", [] | [ON]) => self.sampling.is_on.store(true, Ordering::Relaxed),
            ("trace_level", [OFF]) => self.sampling.is_on.store(false, Ordering::Relaxed),
            ("trace_rate", []) => self.sampling.every.store(configured, Ordering::Relaxed),
            ("trace_rate", [text]) => match text.parse() {
                Ok(every @ 1..) => self.sampling.every.store(every, Ordering::Relaxed),
                _ => return Err(Error::invalid("trace_rate must be a positive whole number")),
            },
            (_, []) => {}
            _ => {
                return Err(Error::unsupported(format!(
                    "{name} cannot be changed here; trace_level can be {ON} or {OFF}, and \
                     trace_rate any positive number"
                )));
            }
        }
        Ok(())
    }
}

/// Whether a setting is a list in JSON.
pub(crate) fn is_list(name: &str) -> bool {
    name == "trace_level"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TracingSettings;
    use mortise_observe::Observer;
    use mortise_types::ErrorKind::{InvalidInput, Unsupported};

    fn tracer(is_configured: bool) -> std::sync::Arc<Tracer> {
        let settings = TracingSettings {
            endpoint: "http://127.0.0.1:1/v1/traces".to_owned(),
            service_name: "test".to_owned(),
            sample_every: 3,
            max_queued_requests: 1,
        };
        let counters = Observer::new().traces;
        Tracer::new(is_configured.then_some(&settings), counters).unwrap()
    }

    #[test]
    fn settings_change_where_tracing_is_configured() {
        for (is_configured, model, name, values, want) in [
            (false, None, "trace_level", &["OFF"][..], Ok(())),
            (false, None, "trace_rate", &[], Ok(())),
            (false, None, "trace_level", &["TIMESTAMPS"], Err(Unsupported)),
            (false, None, "trace_colour", &["red"], Err(InvalidInput)),
            (true, None, "trace_level", &["OFF"], Ok(())),
            (true, None, "trace_level", &["TENSORS"], Err(Unsupported)),
            (true, Some("m"), "trace_level", &["OFF"], Err(Unsupported)),
            (true, Some("m"), "trace_rate", &["3"], Ok(())),
            (true, None, "trace_rate", &["7"], Ok(())),
            (true, None, "trace_rate", &["0"], Err(InvalidInput)),
            (true, None, "trace_file", &["traces.json"], Err(Unsupported)),
            (true, None, "trace_mode", &["opentelemetry"], Ok(())),
        ] {
            let values: Vec<String> = values.iter().map(|&value| value.to_owned()).collect();
            let outcome = tracer(is_configured).update(model, name, &values);
            assert_eq!(outcome.map_err(|error| error.kind()), want, "{name} {values:?}");
        }
    }

    #[test]
    fn the_rate_is_kept_until_it_is_cleared() {
        let tracer = tracer(true);
        let taken = || (0..12).filter(|_| tracer.sampling.takes_next()).count();
        assert_eq!(taken(), 4);
        tracer.update(None, "trace_rate", &["2".to_owned()]).unwrap();
        assert_eq!(taken(), 6);
        assert!(tracer.settings().contains(&("trace_rate", vec!["2".to_owned()])));
        tracer.update(None, "trace_rate", &[]).unwrap();
        assert_eq!(taken(), 4);
    }
}
