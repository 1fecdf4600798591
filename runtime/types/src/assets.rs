use crate::{Bytes, Error, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A read-only blob that belongs to a deployment: a model file, a vocabulary.
#[derive(Clone)]
pub struct Asset {
    /// Content digest, `sha256:<hex>`; equal digests mean equal bytes.
    pub digest: Arc<str>,
    /// The blob, normally mapped from the store's own copy.
    pub bytes: Bytes,
}

/// The named assets of one version. Cloning shares them.
#[derive(Clone, Default)]
pub struct Assets(Arc<BTreeMap<String, Asset>>);

impl Assets {
    pub fn new(assets: BTreeMap<String, Asset>) -> Self {
        Self(Arc::new(assets))
    }

    /// # Errors
    /// When there is no such asset; the message lists those there are.
    pub fn get(&self, name: &str) -> Result<&Asset> {
        self.0.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.0.keys().map(String::as_str).collect();
            Error::not_found(format!("no asset \"{name}\"; this version has {names:?}"))
        })
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Sum of the sizes of all assets.
    pub fn total_bytes(&self) -> u64 {
        self.0.values().map(|asset| asset.bytes.len() as u64).sum()
    }
}
