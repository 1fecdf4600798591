//! Files that may be replaced while the server runs: certificates and API keys.

use crate::auth::ApiKeys;
use crate::net::Tls;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often the files are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Takes changed files as they come, for as long as it is polled. A file that
/// cannot be used leaves what was there before.
pub(crate) async fn watch(tls: Option<Arc<Tls>>, keys: Option<Arc<ApiKeys>>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        if let Some(tls) = &tls {
            report("the TLS certificate", tls.reload_if_changed());
        }
        if let Some(keys) = &keys {
            report("the API keys", keys.reload_if_changed());
        }
    }
}

fn report(what: &str, outcome: anyhow::Result<bool>) {
    match outcome {
        Ok(false) => {}
        Ok(true) => tracing::info!("{what} changed and was read again"),
        Err(error) => tracing::error!("{what} changed but stays as it was: {error:#}"),
    }
}

/// What tells a replaced file from the one before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp(Vec<Option<FileStamp>>);

type FileStamp = (Option<SystemTime>, u64, u64);

impl Stamp {
    pub(crate) fn of<'a>(files: impl IntoIterator<Item = &'a Path>) -> Self {
        let one = |path: &Path| {
            let data = std::fs::metadata(path).ok()?;
            Some((data.modified().ok(), data.len(), data.ino()))
        };
        Self(files.into_iter().map(one).collect())
    }

    /// Keeps `seen`; returns whether it differs.
    pub(crate) fn replace(&mut self, seen: Self) -> bool {
        let differs = *self != seen;
        *self = seen;
        differs
    }
}
