use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The bearer token of the admin API, made at the first start and kept in the
/// store, readable by its owner only.
pub(crate) struct Token(String);

impl Token {
    /// # Errors
    /// When the file cannot be read or made.
    pub(crate) fn load_or_create(store_dir: &Path) -> Result<Self> {
        let path = store_dir.join("admin.token");
        match std::fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => Ok(Self(text.trim().to_string())),
            Ok(_) => Self::create(&path),
            Err(error) if error.kind() == ErrorKind::NotFound => Self::create(&path),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn create(path: &Path) -> Result<Self> {
        let mut random = [0u8; 32];
        File::open("/dev/urandom")
            .and_then(|mut source| source.read_exact(&mut random))
            .context("cannot read /dev/urandom to make the admin token")?;
        let mut token = String::new();
        random.iter().try_for_each(|byte| write!(token, "{byte:02x}"))?;
        write_private(path, token.as_bytes())?;
        Ok(Self(token))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Compares digests byte by byte to the end, so that the time taken tells
    /// nothing about the token.
    pub(crate) fn matches(&self, given: &str) -> bool {
        let (ours, theirs) = (Sha256::digest(&self.0), Sha256::digest(given));
        ours.iter().zip(theirs.iter()).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
    }
}

/// Writes a file that only its owner can read, whole or not at all.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write_private(path: &Path, contents: &[u8]) -> Result<()> {
    let temporary = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_matches() {
        let token = Token("abc".to_string());
        for (given, want) in [("abc", true), ("abd", false), ("", false), ("abcd", false)] {
            assert_eq!(token.matches(given), want, "{given:?}");
        }
    }
}
