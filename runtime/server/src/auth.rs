//! API keys of the data plane. The file holds digests, so that reading it gives
//! no key away.

use crate::reload::Stamp;
use anyhow::{Context, Result, bail};
use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, header};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a key may stand beside `Authorization: Bearer`.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Keys beyond these are refused when the file is read.
const MAX_KEYS: usize = 10_000;

/// Longest name of a client, in bytes: names are labels of metrics and logs.
const MAX_NAME_BYTES: usize = 64;

const DIGEST_BYTES: usize = 32;

type KeyDigest = [u8; DIGEST_BYTES];

/// Who may ask for predictions. Keys can be added and removed while the server
/// runs.
pub(crate) struct ApiKeys {
    path: PathBuf,
    clients: ArcSwap<Clients>,
    stamp: Mutex<Stamp>,
}

/// A client that showed a key: its name in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Client(pub(crate) Arc<str>);

/// Why a request may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    NoKey,
    WrongKey,
}

impl Denied {
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::NoKey => {
                "this server wants an API key: send \"Authorization: Bearer KEY\" or \
                 \"X-API-Key: KEY\""
            }
            Self::WrongKey => "the API key is not known here, or was removed",
        }
    }
}

impl ApiKeys {
    /// # Errors
    /// When the file cannot be read or a line is not `NAME sha256:HEX`.
    pub(crate) fn load(path: PathBuf) -> Result<Arc<Self>> {
        let stamp = Mutex::new(Stamp::of([path.as_path()]));
        let clients = ArcSwap::from_pointee(Clients::read(&path)?);
        Ok(Arc::new(Self { path, clients, stamp }))
    }

    /// Reads the file again when it was replaced. Returns whether it was.
    ///
    /// # Errors
    /// As [`ApiKeys::load`]; the old keys then stay.
    pub(crate) fn reload_if_changed(&self) -> Result<bool> {
        let seen = Stamp::of([self.path.as_path()]);
        if !self.stamp.lock().replace(seen) {
            return Ok(false);
        }
        self.clients.store(Arc::new(Clients::read(&self.path)?));
        Ok(true)
    }

    /// The client whose key stands in `headers`.
    ///
    /// # Errors
    /// Without a key, or with one that is not in the file.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<Client, Denied> {
        let key = presented(headers).ok_or(Denied::NoKey)?;
        self.clients.load().find(key).ok_or(Denied::WrongKey)
    }
}

fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(value) = headers.get(API_KEY) {
        return Some(value.as_bytes());
    }
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
}

/// The clients of a file by the first bytes of their key's digest.
#[derive(Default)]
struct Clients(HashMap<[u8; 8], Vec<(KeyDigest, Client)>>);

impl Clients {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!(
                "cannot read {} (auth.api_keys); `mortise keys add NAME --file {}` makes it",
                path.display(),
                path.display()
            )
        })?;
        Self::parse(&text).with_context(|| format!("in {} (auth.api_keys)", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut clients = Self::default();
        let lines = text.lines().map(str::trim).enumerate();
        for (index, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let (name, digest) = parse_line(line).with_context(|| format!("line {}", index + 1))?;
            let bucket = clients.0.entry(bucket(&digest)).or_default();
            bucket.push((digest, Client(name.into())));
            anyhow::ensure!(index < MAX_KEYS, "more than {MAX_KEYS} lines");
        }
        Ok(clients)
    }

    /// What a lookup takes tells at most about the digest of the key that was
    /// sent, never about one in the file: to steer towards that, one would have
    /// to invert SHA-256. The digests themselves are compared to the end.
    fn find(&self, key: &[u8]) -> Option<Client> {
        let given: KeyDigest = Sha256::digest(key).into();
        let candidates = self.0.get(&bucket(&given))?;
        candidates.iter().find(|(known, _)| equal(known, &given)).map(|(_, client)| client.clone())
    }
}

fn bucket(digest: &KeyDigest) -> [u8; 8] {
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    first
}

/// Compares every byte, whatever the earlier ones were.
fn equal(a: &KeyDigest, b: &KeyDigest) -> bool {
    let differing = a.iter().zip(b).fold(0, |differing, (a, b)| differing | (a ^ b));
    std::hint::black_box(differing) == 0
}

fn parse_line(line: &str) -> Result<(&str, KeyDigest)> {
    let (name, rest) = line
        .split_once(char::is_whitespace)
        .context("expected `NAME sha256:HEX`, as `mortise keys add` writes it")?;
    check_name(name)?;
    let hex = rest.trim().strip_prefix("sha256:").context("the digest begins with `sha256:`")?;
    let mut digest = [0; DIGEST_BYTES];
    let digits = hex.as_bytes();
    anyhow::ensure!(digits.len() == 2 * DIGEST_BYTES, "a SHA-256 has 64 hexadecimal digits");
    for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).unwrap_or_default();
        *byte = u8::from_str_radix(pair, 16).context("a digit is not hexadecimal")?;
    }
    Ok((name, digest))
}

fn check_name(name: &str) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(is_plain) {
        bail!(
            "{name:?} is not a client's name: up to {MAX_NAME_BYTES} letters, digits, '-', '_', \
             '.' and '@'"
        );
    }
    Ok(())
}

/// Makes a key for `name`, adds its digest to the file, and returns the key,
/// which is not kept.
///
/// # Errors
/// When the name is taken or not one, or the file cannot be read or written.
pub(crate) fn add_key(path: &Path, name: &str) -> Result<String> {
    check_name(name)?;
    let mut text = existing(path)?;
    if lines_of(&text, name).next().is_some() {
        bail!("{name} has a key already; `mortise keys remove {name}` first, or take another name");
    }
    let mut random = [0u8; DIGEST_BYTES];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut random))
        .context("cannot read /dev/urandom to make a key")?;
    let key = format!("mk_{}", hex(&random));
    let digest: KeyDigest = Sha256::digest(&key).into();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    writeln!(text, "{name} sha256:{}", hex(&digest))?;
    crate::admin::write_private(path, text.as_bytes())?;
    Ok(key)
}

/// Removes the key of `name`.
///
/// # Errors
/// When it has none, or the file cannot be read or written.
pub(crate) fn remove_key(path: &Path, name: &str) -> Result<()> {
    let text = existing(path)?;
    if lines_of(&text, name).next().is_none() {
        bail!("{name} has no key in {}", path.display());
    }
    let kept: String = text
        .lines()
        .filter(|line| line.split_whitespace().next() != Some(name))
        .fold(String::new(), |kept, line| kept + line + "\n");
    crate::admin::write_private(path, kept.as_bytes())
}

fn existing(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn lines_of<'t>(text: &'t str, name: &str) -> impl Iterator<Item = &'t str> {
    text.lines().filter(move |line| line.split_whitespace().next() == Some(name))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        headers
    }

    #[test]
    fn a_key_opens_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let (ann, bob) = (add_key(&path, "ann").unwrap(), add_key(&path, "bob").unwrap());
        assert!(add_key(&path, "ann").is_err());
        let keys = ApiKeys::load(path.clone()).unwrap();
        let client = |name: &str| Ok(Client(name.into()));
        assert_eq!(keys.check(&headers(API_KEY, &ann)), client("ann"));
        let bearer = headers(header::AUTHORIZATION, &format!("bearer {bob}"));
        assert_eq!(keys.check(&bearer), client("bob"));
        assert_eq!(keys.check(&HeaderMap::new()), Err(Denied::NoKey));
        assert_eq!(keys.check(&headers(API_KEY, &ann[1..])), Err(Denied::WrongKey));
        assert!(!std::fs::read_to_string(&path).unwrap().contains(&ann));
        remove_key(&path, "ann").unwrap();
        assert!(keys.reload_if_changed().unwrap());
        assert_eq!(keys.check(&headers(API_KEY, &ann)), Err(Denied::WrongKey));
        assert_eq!(keys.check(&bearer), client("bob"));
        assert!(!keys.reload_if_changed().unwrap());
    }

    #[test]
    fn wrong_lines_are_named() {
        let digest = "0".repeat(64);
        let long = "n".repeat(65);
        for (text, want) in [
            ("ann", "line 1"),
            ("# fine\n\nann sha256:12", "64 hexadecimal digits"),
            (&format!("ann md5:{digest}"), "sha256:"),
            (&format!("{long} sha256:{digest}"), "not a client's name"),
            (&format!("a\"b sha256:{digest}"), "not a client's name"),
            (&format!("ann sha256:{}", "g".repeat(64)), "not hexadecimal"),
        ] {
            let message = Clients::parse(text).err().map(|e| format!("{e:#}")).unwrap_or_default();
            assert!(message.contains(want), "{text:?}: {message:?}");
        }
    }
}
