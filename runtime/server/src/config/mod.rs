//! The server's settings: `mortise.toml` as it is written ([`raw`]) and as the
//! server uses it ([`resolved`]). Settings of endpoints are in the store.

mod raw;
mod resolved;
mod unknown;

pub(crate) use raw::Raw;
pub(crate) use resolved::{
    GrpcSettings, HttpSettings, Overrides, Resolved, TlsSettings, TracingSettings,
};

use anyhow::{Context, Result};
use std::path::Path;

/// Reads `mortise.toml`; the defaults without a path.
///
/// # Errors
/// When the file cannot be read, is not TOML, or has an unknown key.
pub(crate) fn load(path: Option<&Path>) -> Result<Raw> {
    let Some(path) = path else { return Ok(Raw::default()) };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration {}", path.display()))?;
    parse(&text).with_context(|| format!("in {}", path.display()))
}

fn parse(text: &str) -> Result<Raw> {
    let mut table: toml::Table = toml::from_str(text)?;
    // Its names are those of plugins, and its keys are checked on their own.
    table.remove("plugin");
    unknown::refuse(&table, &Raw::default().to_table())?;
    Ok(toml::from_str(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_or_refused_with_a_reason() {
        let cases = [
            ("", ""),
            ("[http]\nmax_body_bytes = 5", ""),
            (
                "[http]\nmax_boddy_bytes = 5",
                "unknown key `http.max_boddy_bytes`; did you mean `max_body_bytes`?",
            ),
            ("[htttp]\n", "unknown key `htttp`; did you mean `http`?"),
            ("[http]\nzzz = 1", "unknown key `http.zzz`; known keys of `http`: "),
            ("[http]\nmax_body_bytes = -5", "max_body_bytes"),
        ];
        for (text, want) in cases {
            let message = parse(text).err().map(|e| format!("{e:#}")).unwrap_or_default();
            assert!(message.contains(want), "{text:?}: {message}");
            assert_eq!(message.is_empty(), want.is_empty(), "{text:?}: {message}");
        }
    }

    #[test]
    fn traces_go_to_a_collector() {
        let resolved = |endpoint: &str| {
            let text = format!("[tracing]\nendpoint = {endpoint:?}");
            Resolved::new(&parse(&text).unwrap(), "store".into())
        };
        assert!(resolved("").unwrap().tracing.is_none());
        let settings = resolved("http://there:4318/v1/traces").unwrap().tracing.unwrap();
        assert_eq!(settings.sample_every, 1_000);
        assert!(resolved("https://there/v1/traces").unwrap().tracing.is_some());
        for endpoint in ["ftp://there/v1/traces", "there:4318"] {
            let error = resolved(endpoint).err().unwrap().to_string();
            assert!(error.contains("tracing.endpoint") && error.contains("http://"), "{error}");
        }
    }

    #[test]
    fn plugins_have_bounds_of_their_own() {
        let text = "[plugins]\ncall_timeout_ms = 70\n[plugin.tabular]\ninstances = 9";
        let resolved = Resolved::new(&parse(text).unwrap(), "store".into()).unwrap();
        let tabular = &resolved.limits_by_plugin["tabular"];
        let millis = |limits: &mortise_host::PluginLimits| limits.call_timeout.as_millis();
        assert_eq!((tabular.instances, millis(tabular)), (9, 70));
        assert_eq!((resolved.plugins.instances, millis(&resolved.plugins)), (4, 70));
        for (text, want) in [
            ("instnces = 9", "in [plugin.x]: unknown key `instnces`; did you mean `instances`?"),
            ("max_cache_bytes = 9", "unknown key `max_cache_bytes`"),
            ("instances = 0", "in [plugin.x]: plugins.instances"),
            ("instances = \"many\"", "in [plugin.x]"),
        ] {
            let raw = parse(&format!("[plugin.x]\n{text}")).unwrap();
            let error = Resolved::new(&raw, "store".into()).err().unwrap();
            assert!(format!("{error:#}").contains(want), "{text}: {error:#}");
        }
    }

    #[test]
    fn the_printed_configuration_reads_back_as_itself() {
        let text = Raw::default().to_documented_toml();
        let table = toml::from_str::<toml::Table>(&text).unwrap();
        assert_eq!(table, Raw::default().to_table());
        assert_eq!(parse(&text).unwrap().to_table(), Raw::default().to_table());
    }

    #[test]
    fn the_defaults_of_plugins_are_those_of_the_host() {
        let resolved = Resolved::new(&Raw::default(), "store".into()).unwrap();
        assert_eq!(resolved.plugins, mortise_host::PluginLimits::default());
    }
}
