use crate::bindings::model::mortise::plugin::assets as raw;
use crate::{Error, Result};
use serde::de::DeserializeOwned;

/// What a plugin is loaded with: its configuration and its assets.
#[derive(Debug)]
pub struct Context {
    config: String,
}

impl Context {
    /// A context over a configuration in JSON; `""` stands for `{}`.
    pub fn new(config: impl Into<String>) -> Self {
        Self { config: config.into() }
    }

    /// The deployment's configuration as a Rust type. Mark the type
    /// `#[serde(deny_unknown_fields)]`, so that a misspelt key is an error
    /// that lists the right ones.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the configuration does not fit `T`.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T> {
        let text = if self.config.trim().is_empty() { "{}" } else { &self.config };
        serde_json::from_str(text)
            .map_err(|error| Error::invalid(format!("the configuration is not valid: {error}")))
    }

    /// The deployment's read-only files.
    pub fn assets(&self) -> Assets {
        Assets(())
    }
}

/// The read-only files of a deployment. A model that is deployed from one file
/// has it under the name `model`.
#[derive(Debug)]
pub struct Assets(());

impl Assets {
    /// The most bytes that one [`Assets::read`] returns: 16 MiB.
    pub const MAX_READ_BYTES: u64 = 16 << 20;

    /// In alphabetical order.
    pub fn names(&self) -> Vec<String> {
        raw::names()
    }

    /// Size in bytes.
    ///
    /// # Errors
    /// When there is no such asset; the message lists those there are.
    pub fn len(&self, name: &str) -> Result<u64> {
        Ok(raw::length(name)?)
    }

    /// `length` bytes from `offset`.
    ///
    /// # Errors
    /// When the range is out of bounds or longer than
    /// [`Assets::MAX_READ_BYTES`].
    pub fn read(&self, name: &str, offset: u64, length: u64) -> Result<Vec<u8>> {
        Ok(raw::read(name, offset, length)?)
    }

    /// The whole asset, at most `max_bytes` of it. The bytes are copied into
    /// the plugin: weights are better left to
    /// [`crate::GraphBuilder::weight`].
    ///
    /// # Errors
    /// When the asset is missing or larger than `max_bytes`.
    pub fn read_all(&self, name: &str, max_bytes: u64) -> Result<Vec<u8>> {
        let len = self.len(name)?;
        if len > max_bytes {
            return Err(Error::invalid(format!(
                "asset \"{name}\" is {len} bytes, more than the {max_bytes} allowed here"
            )));
        }
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < len {
            let offset = bytes.len() as u64;
            bytes.extend(self.read(name, offset, (len - offset).min(Self::MAX_READ_BYTES))?);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Debug, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Config {
        #[serde(default)]
        factor: Option<f32>,
    }

    #[test]
    fn configuration_errors_name_the_key_and_the_choices() {
        assert_eq!(Context::new("").config::<Config>().unwrap(), Config { factor: None });
        let error = Context::new(r#"{"faktor": 2}"#).config::<Config>().unwrap_err();
        assert_eq!(
            error.message(),
            "the configuration is not valid: unknown field `faktor`, expected `factor` at line 1 \
             column 9"
        );
    }
}
