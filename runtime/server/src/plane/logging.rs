//! The logging extension: what is logged, while the server runs.

use mortise_types::{Error, Result};
use parking_lot::Mutex;

/// Applies a filter such as `info` or `mortise_host=debug,info`.
type Apply = Box<dyn Fn(&str) -> Result<()> + Send + Sync>;

/// What the extension calls its settings, and what they are now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogSettings {
    pub(crate) info: bool,
    pub(crate) warning: bool,
    pub(crate) error: bool,
    /// 1 adds debugging messages, 2 and more add traces.
    pub(crate) verbose_level: u64,
}

/// A setting that a client sends.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LogValue {
    Bool(bool),
    Number(u64),
    Text(String),
}

pub(crate) struct LogControl {
    apply: Apply,
    settings: Mutex<LogSettings>,
}

impl LogControl {
    /// `filter` is what is applied already.
    pub(crate) fn new(filter: &str, apply: Apply) -> Self {
        Self { apply, settings: Mutex::new(LogSettings::of(filter)) }
    }

    pub(crate) fn settings(&self) -> LogSettings {
        *self.settings.lock()
    }

    /// Changes some settings, all or none.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown setting or a value of another type,
    /// `Unsupported` for log files and other formats.
    pub(crate) fn update(
        &self,
        changes: impl IntoIterator<Item = (String, LogValue)>,
    ) -> Result<LogSettings> {
        let mut settings = self.settings.lock();
        let mut next = *settings;
        for (name, value) in changes {
            next.change(&name, value)?;
        }
        if next != *settings {
            (self.apply)(next.filter())?;
            *settings = next;
        }
        Ok(next)
    }
}

impl LogSettings {
    /// What a filter's default level comes to.
    fn of(filter: &str) -> Self {
        let level = filter.split(',').find(|part| !part.contains('=')).unwrap_or("").trim();
        let rank = ["off", "error", "warn", "info", "debug", "trace"];
        let rank = rank.iter().position(|name| level.eq_ignore_ascii_case(name)).unwrap_or(1);
        Self {
            error: rank >= 1,
            warning: rank >= 2,
            info: rank >= 3,
            verbose_level: (rank as u64).saturating_sub(3),
        }
    }

    /// The most detailed level that is on: a level includes those above it.
    fn filter(self) -> &'static str {
        match self {
            Self { verbose_level: 2.., .. } => "trace",
            Self { verbose_level: 1, .. } => "debug",
            Self { info: true, .. } => "info",
            Self { warning: true, .. } => "warn",
            Self { error: true, .. } => "error",
            _ => "off",
        }
    }

    fn change(&mut self, name: &str, value: LogValue) -> Result<()> {
        match (name, value) {
            ("log_info", LogValue::Bool(on)) => self.info = on,
            ("log_warning", LogValue::Bool(on)) => self.warning = on,
            ("log_error", LogValue::Bool(on)) => self.error = on,
            ("log_verbose_level", LogValue::Number(level)) => self.verbose_level = level,
            ("log_format", LogValue::Text(format)) if format == "default" => {}
            ("log_file", LogValue::Text(file)) if file.is_empty() => {}
            ("log_file" | "log_format", LogValue::Text(value)) => {
                return Err(Error::unsupported(format!(
                    "{name} = {value:?}: the log goes to stderr, in one format"
                )));
            }
            ("log_info" | "log_warning" | "log_error", _) => {
                return Err(Error::invalid(format!("{name} must be true or false")));
            }
            ("log_verbose_level", _) => {
                return Err(Error::invalid("log_verbose_level must be a whole number"));
            }
            _ => return Err(Error::invalid(format!("there is no log setting {name:?}"))),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn settings_become_filters() {
        let applied = Arc::new(Mutex::new(Vec::new()));
        let seen = applied.clone();
        let apply = move |filter: &str| {
            seen.lock().push(filter.to_owned());
            Ok(())
        };
        let control = LogControl::new("mortise_host=debug,info", Box::new(apply));
        let before = control.settings();
        assert!(before.info && before.warning && before.error && before.verbose_level == 0);
        let set = |name: &str, value| control.update([(name.to_owned(), value)]);
        set("log_info", LogValue::Bool(false)).unwrap();
        set("log_verbose_level", LogValue::Number(1)).unwrap();
        set("log_format", LogValue::Text("default".into())).unwrap();
        assert_eq!(*applied.lock(), ["warn", "debug"]);
        assert!(set("log_file", LogValue::Text("x".into())).is_err());
        assert!(set("log_info", LogValue::Number(1)).is_err());
        assert!(set("log_colour", LogValue::Bool(true)).is_err());
        assert_eq!(applied.lock().len(), 2);
    }
}
