use crate::revision::Revision;
use crate::routing::{RequestFacts, Routing};
use crate::variant_stats::VariantStats;
use mortise_types::{Error, Result, Tensor};
use std::sync::Arc;
use std::time::Duration;

/// The versions that answer for an endpoint at one time, with their shares of
/// the traffic: immutable, taken whole by each request, replaced whole.
pub struct Lineup {
    variants: Vec<Variant>,
    /// Index of the variant that answers whenever nothing else is decided.
    stable: usize,
    /// `None` sends everything to the stable variant.
    routing: Option<Routing>,
}

/// A version with its share of the traffic.
#[derive(Clone)]
pub struct Variant {
    /// What replies call it: `stable`, `candidate`, `version-3`.
    pub name: Arc<str>,
    pub revision: Arc<Revision>,
    /// In parts of [`Variant::WHOLE`].
    pub weight: u32,
    /// Kept when only weights change.
    pub stats: Arc<VariantStats>,
}

impl Variant {
    /// The weight of all requests.
    pub const WHOLE: u32 = 10_000;

    /// The name of the variant that answers by default.
    pub const STABLE: &str = "stable";

    /// The name of the variant that a rollout tries.
    pub const CANDIDATE: &str = "candidate";

    /// What the stable variant is called for requests that take no part in an
    /// experiment.
    pub const OUTSIDE: &str = "outside";

    /// What a version is called that shares the traffic outside of a rollout.
    pub fn name_of(version: u64) -> String {
        format!("version-{version}")
    }

    /// A variant that has not answered yet.
    pub fn new(name: &str, revision: Arc<Revision>, weight: u32) -> Self {
        Self { name: name.into(), revision, weight, stats: Arc::default() }
    }
}

/// Where one request goes.
pub(crate) struct Route {
    lineup: Arc<Lineup>,
    index: usize,
    origin: Origin,
    /// Bit `i` sends a copy to variant `i`.
    shadow: u32,
}

/// Why a request went where it did: what its outcome says about the variant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The router decided, or there is none: evidence.
    Routed,
    /// The router decided, but the request takes no part in its experiment.
    Outside,
    /// The request named its version.
    Named,
    /// The router could not decide, or a sequence stays where it is.
    Kept,
}

impl Route {
    /// To the stable variant, without evidence.
    pub(crate) fn past_router(lineup: Arc<Lineup>) -> Self {
        Self { index: lineup.stable, lineup, origin: Origin::Kept, shadow: 0 }
    }

    pub(crate) fn variant(&self) -> &Variant {
        &self.lineup.variants[self.index]
    }

    /// Answers instead, when the variant cannot: the stable one, and in its own
    /// place the one with the largest share, if any has one.
    pub(crate) fn fallback(&self) -> Option<&Variant> {
        if !matches!(self.origin, Origin::Routed | Origin::Outside) {
            return None;
        }
        if self.index != self.lineup.stable {
            return Some(self.lineup.stable());
        }
        let others = self.lineup.variants.iter().enumerate();
        let others = others.filter(|(at, other)| *at != self.index && other.weight > 0);
        others.map(|(_, other)| other).max_by_key(|other| other.weight)
    }

    /// What the reply calls the variant that answered, where that is not its name.
    pub(crate) fn label(&self) -> Option<Arc<str>> {
        (self.origin == Origin::Outside).then(|| Variant::OUTSIDE.into())
    }

    /// Counts how the variant did.
    pub(crate) fn record(&self, outcome: Result<Duration, &Error>) {
        let stats = &self.variant().stats;
        match (self.origin, outcome) {
            (Origin::Routed, Ok(took)) => stats.succeeded(took),
            (Origin::Routed, Err(error)) => stats.failed(error),
            (Origin::Named, outcome) => stats.named(outcome.err()),
            (Origin::Outside | Origin::Kept, _) => {}
        }
    }

    /// Variants that get a copy.
    pub(crate) fn shadows(&self) -> impl Iterator<Item = &Variant> {
        let is_shadow =
            |&(at, _): &(usize, &Variant)| at != self.index && self.shadow >> at & 1 == 1;
        self.lineup.variants.iter().enumerate().filter(is_shadow).map(|(_, variant)| variant)
    }

    pub(crate) fn has_shadows(&self) -> bool {
        self.shadow != 0
    }
}

impl Lineup {
    /// One version for everything.
    pub fn single(revision: Arc<Revision>) -> Self {
        let variant = Variant::new(Variant::STABLE, revision, Variant::WHOLE);
        Self { variants: vec![variant], stable: 0, routing: None }
    }

    /// Several versions; `stable` is the index of one. The router, if any, was
    /// configured with the same variants in the same order.
    ///
    /// # Errors
    /// When `stable` names none of them.
    pub fn new(variants: Vec<Variant>, stable: usize, routing: Option<Routing>) -> Result<Self> {
        match stable < variants.len() {
            true => Ok(Self { variants, stable, routing }),
            false => Err(Error::internal("a lineup without its stable variant")),
        }
    }

    pub fn variants(&self) -> &[Variant] {
        &self.variants
    }

    pub fn stable(&self) -> &Variant {
        &self.variants[self.stable]
    }

    pub fn routing(&self) -> Option<&Routing> {
        self.routing.as_ref()
    }

    /// The variant of this version.
    pub fn of_version(&self, version: u64) -> Option<&Variant> {
        self.variants.iter().find(|variant| variant.revision.version() == version)
    }

    /// Whether a revision takes part.
    pub(crate) fn has(&self, revision: &Arc<Revision>) -> bool {
        self.variants.iter().any(|variant| Arc::ptr_eq(&variant.revision, revision))
    }

    /// Where a request that names no version goes.
    pub(crate) fn route(
        self: Arc<Self>,
        facts: Option<&dyn RequestFacts>,
        inputs: &[(String, Tensor)],
    ) -> Route {
        let choice = self.routing.as_ref().map(|routing| routing.choose(facts, inputs));
        let (index, shadow) = match choice.flatten() {
            Some(choice) if choice.variant < self.variants.len() => (choice.variant, choice.shadow),
            _ => (self.stable, 0),
        };
        let origin = match choice {
            Some(None) => Origin::Kept,
            Some(Some(choice)) if choice.is_outside => Origin::Outside,
            // Without a router everything is the stable variant's.
            Some(Some(_)) | None => Origin::Routed,
        };
        Route { lineup: self, index, origin, shadow }
    }

    /// Where a request that names its version goes: past the router, and the
    /// outcome says nothing about a rollout.
    ///
    /// # Errors
    /// `NotFound` when the version does not take part.
    pub(crate) fn named(self: Arc<Self>, endpoint: &str, version: &str) -> Result<Route> {
        let number: Option<u64> = version.parse().ok();
        let is_wanted = |variant: &Variant| number == Some(variant.revision.version());
        match self.variants.iter().position(is_wanted) {
            Some(index) => Ok(Route { lineup: self, index, origin: Origin::Named, shadow: 0 }),
            None => Err(Error::not_found(format!(
                "model \"{endpoint}\" has no version \"{version}\"; {}",
                self.versions()
            ))),
        }
    }

    /// Where a request goes that must stay with a revision, whatever is live
    /// meanwhile.
    pub(crate) fn keep(self: Arc<Self>, revision: &Arc<Revision>) -> Route {
        let is_it = |variant: &Variant| Arc::ptr_eq(&variant.revision, revision);
        match self.variants.iter().position(is_it) {
            Some(index) => Route { lineup: self, index, origin: Origin::Kept, shadow: 0 },
            None => Route::past_router(Arc::new(Self::single(revision.clone()))),
        }
    }

    /// `version 3 is live`, or all of several.
    pub fn versions(&self) -> String {
        match self.variants.as_slice() {
            [only] => format!("version {} is live", only.revision.version()),
            several => {
                let numbers: Vec<String> =
                    several.iter().map(|variant| variant.revision.version().to_string()).collect();
                format!("versions {} are live", numbers.join(", "))
            }
        }
    }
}
