use crate::key_sample::KeySample;
use mortise_host::{Place, Probe, RouteChoice, RouterPlugin, RouterStats};
use mortise_types::{DType, Error, Result, Tensor};
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a router may know about a request besides its tensors; implemented by
/// each protocol.
pub trait RequestFacts: Sync {
    /// The value of a header, by its name in lower case.
    fn header(&self, name: &str) -> Option<&[u8]>;
    /// The value of a parameter of the request's body, as text.
    fn parameter(&self, name: &str) -> Option<Cow<'_, [u8]>>;
}

/// Decides about one request; implemented by [`RouterPlugin`].
pub trait Router: Send + Sync {
    /// The questions to answer about each request, in order.
    fn probes(&self) -> &[Probe];

    /// `None` when it cannot tell: the stable variant answers.
    fn route(&self, key_hash: u64, seed: u64, matched: u64) -> Option<RouteChoice>;

    fn stats(&self) -> RouterStats;
}

impl Router for Arc<RouterPlugin> {
    fn probes(&self) -> &[Probe] {
        RouterPlugin::probes(self)
    }

    fn route(&self, key_hash: u64, seed: u64, matched: u64) -> Option<RouteChoice> {
        RouterPlugin::route(self, key_hash, seed, matched)
    }

    fn stats(&self) -> RouterStats {
        RouterPlugin::stats(self)
    }
}

/// A router with what it is told about each request.
pub struct Routing {
    router: Box<dyn Router>,
    key: Option<KeySource>,
    counts: Arc<RoutingCounts>,
    sample: KeySample,
}

/// Requests that no variant's counts tell of. They outlive the [`Routing`], which
/// every change of weights replaces.
#[derive(Default)]
pub struct RoutingCounts {
    keyless: AtomicU64,
    undecided: AtomicU64,
    outside: AtomicU64,
}

/// [`RoutingCounts`] at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoutingSnapshot {
    /// Requests without a sticky key; each is assigned on its own.
    pub keyless: u64,
    /// Requests that went to the stable variant because the router failed.
    pub undecided: u64,
    /// Requests that the router kept out of an experiment.
    pub outside: u64,
}

impl RoutingCounts {
    pub fn snapshot(&self) -> RoutingSnapshot {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        RoutingSnapshot {
            keyless: load(&self.keyless),
            undecided: load(&self.undecided),
            outside: load(&self.outside),
        }
    }
}

/// Where the sticky key of a request is: requests with one key get one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// In lower case.
    Header(String),
    Parameter(String),
    /// The first element of an input.
    Input(String),
}

impl KeySource {
    /// Reads `header:NAME`, `parameter:NAME` or `input:NAME`.
    ///
    /// # Errors
    /// `InvalidInput` for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("header", name)) if !name.is_empty() => {
                Ok(Self::Header(name.to_ascii_lowercase()))
            }
            Some(("parameter", name)) if !name.is_empty() => Ok(Self::Parameter(name.to_string())),
            Some(("input", name)) if !name.is_empty() => Ok(Self::Input(name.to_string())),
            _ => Err(Error::invalid(format!(
                "\"{text}\" is no place of a sticky key: write header:NAME, parameter:NAME or \
                 input:NAME"
            ))),
        }
    }

    fn hash(&self, facts: Option<&dyn RequestFacts>, inputs: &[(String, Tensor)]) -> Option<u64> {
        match self {
            Self::Header(name) => facts?.header(name).map(hash_key),
            Self::Parameter(name) => facts?.parameter(name).map(|value| hash_key(&value)),
            Self::Input(name) => {
                let (_, tensor) = inputs.iter().find(|(given, _)| given == name)?;
                first_element(tensor).map(|bytes| hash_key(&bytes))
            }
        }
    }
}

impl Routing {
    /// Counts on where an earlier one with the same `counts` left off.
    pub fn new(
        router: Box<dyn Router>,
        key: Option<KeySource>,
        counts: Arc<RoutingCounts>,
    ) -> Self {
        Self { router, key, counts, sample: KeySample::default() }
    }

    pub fn counts(&self) -> RoutingSnapshot {
        self.counts.snapshot()
    }

    /// Users of a variant in a sample of all users that take part; without sticky
    /// keys every request counts as a user.
    pub fn sampled_keys(&self, variant: usize) -> u64 {
        self.sample.count(variant)
    }

    pub fn stats(&self) -> RouterStats {
        self.router.stats()
    }

    /// Asks the router about one request. `None` when it cannot tell.
    pub fn choose(
        &self,
        facts: Option<&dyn RequestFacts>,
        inputs: &[(String, Tensor)],
    ) -> Option<RouteChoice> {
        let seed = random();
        let key = self.key.as_ref().and_then(|key| key.hash(facts, inputs));
        if key.is_none() && self.key.is_some() {
            self.counts.keyless.fetch_add(1, Ordering::Relaxed);
        }
        let matched = self.matched(facts);
        let key = key.unwrap_or(mix(seed));
        let choice = self.router.route(key, seed, matched);
        match &choice {
            None => drop(self.counts.undecided.fetch_add(1, Ordering::Relaxed)),
            Some(choice) if choice.is_outside => {
                self.counts.outside.fetch_add(1, Ordering::Relaxed);
            }
            Some(choice) => self.sample.note(mix(key ^ SAMPLE_SEED), choice.variant),
        }
        choice
    }

    fn matched(&self, facts: Option<&dyn RequestFacts>) -> u64 {
        let Some(facts) = facts else { return 0 };
        let probes = self.router.probes().iter().enumerate();
        probes.fold(0, |matched, (at, probe)| matched | u64::from(matches(probe, facts)) << at)
    }
}

fn matches(probe: &Probe, facts: &dyn RequestFacts) -> bool {
    let is_wanted =
        |value: &[u8]| probe.literal.as_ref().is_none_or(|literal| literal.as_bytes() == value);
    match &probe.place {
        Place::Header(name) => facts.header(name).is_some_and(is_wanted),
        Place::Parameter(name) => facts.parameter(name).is_some_and(|value| is_wanted(&value)),
    }
}

/// The first element of a tensor as bytes: numbers as they lie in memory.
fn first_element(tensor: &Tensor) -> Option<Cow<'_, [u8]>> {
    if tensor.is_empty() {
        return None;
    }
    if tensor.dtype() == DType::String {
        return Some(Cow::Borrowed(tensor.strings().ok()?.get(0)));
    }
    let size = tensor.dtype().byte_len(1)?;
    tensor.bytes()?.get(..size).map(Cow::Borrowed)
}

/// FNV-1a, and a finaliser because its high bits mix badly. Part of what is
/// kept across versions: another hash would reassign every key.
pub fn hash_key(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(fnv)
}

/// Makes of a key's hash one that no router decides by.
const SAMPLE_SEED: u64 = 0x7361_6d70_6c65_6421;

/// The finaliser of splitmix64.
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// splitmix64 on a counter of each thread, which starts at a random place.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    thread_local! {
        static COUNTER: std::cell::Cell<u64> = std::cell::Cell::new(RandomState::new().hash_one(0));
    }
    COUNTER.with(|counter| {
        let next = counter.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        counter.set(next);
        mix(next)
    })
}

#[cfg(test)]
mod tests {
    use super::hash_key;

    /// Plugins are tested with the same number in `plugin-sdk/src/testing.rs`.
    #[test]
    fn the_hash_of_a_key_never_changes() {
        assert_eq!(hash_key(b"user-1"), 0xc499_b5f8_a721_df58);
    }
}
