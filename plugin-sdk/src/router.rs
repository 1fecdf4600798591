use crate::bindings::model::mortise::plugin::types as raw_types;
use crate::bindings::router::exports::mortise::plugin::router_api as raw;
use crate::{Context, Error, Result, log};
use std::cell::RefCell;
use std::marker::PhantomData;

/// A router: which version answers a request. One instance serves each thread,
/// so `route` must not remember anything between requests.
pub trait Router: Sized + 'static {
    /// Called once per instance, before any request. Exactly one of `variants`
    /// is stable. At most 64 probes are asked.
    ///
    /// # Errors
    /// The message reaches whoever deploys.
    fn configure(variants: &[Candidate], ctx: &Context) -> Result<(Self, Vec<Probe>)>;

    /// Chooses for one request. `key_hash` is equal for equal sticky keys and
    /// random without one; `seed` is random for each request; bit `i` of
    /// `matched` answers probe `i`.
    fn route(&self, key_hash: u64, seed: u64, matched: u64) -> Choice;

    /// Takes in what became known about answers, on one instance, and returns
    /// the state that every instance installs.
    ///
    /// # Errors
    /// The events are dropped and the state stays as it was.
    fn learn(&mut self, events: &[Event]) -> Result<Vec<u8>> {
        let _ = events;
        Ok(Vec::new())
    }

    /// Takes a state that [`Router::learn`] returned, perhaps with other
    /// weights or variants, or before a restart.
    ///
    /// # Errors
    /// When it cannot be read; the instance routes on without it.
    fn install(&mut self, state: &[u8]) -> Result<()> {
        let _ = state;
        Ok(())
    }
}

/// A version that takes part in an endpoint's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub version: u64,
    /// The wanted share of requests, in parts of [`Candidate::WHOLE`].
    pub weight: u32,
    /// Answers whenever the router does not.
    pub stable: bool,
}

impl Candidate {
    /// The weight of all requests.
    pub const WHOLE: u32 = 10_000;
}

/// A question about each request, answered with one bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub place: Place,
    /// The whole value; `None` asks whether there is one.
    pub literal: Option<String>,
}

/// Where the host looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Name in lower case.
    Header(String),
    /// A parameter of the request's body.
    Parameter(String),
}

impl Place {
    /// Reads `header:NAME` or `parameter:NAME`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("header", name)) if !name.is_empty() => {
                Ok(Self::Header(name.to_ascii_lowercase()))
            }
            Some(("parameter", name)) if !name.is_empty() => Ok(Self::Parameter(name.to_owned())),
            _ => Err(Error::invalid(format!(
                "\"{text}\" is no place in a request: write header:NAME or parameter:NAME"
            ))),
        }
    }
}

/// The answer for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Index into the variants of [`Router::configure`].
    pub variant: u32,
    /// Bit `i` sends a copy to variant `i`; that of `variant` itself says that the
    /// request takes no part in an experiment.
    pub shadow: u32,
}

impl Choice {
    /// This variant, and no copies.
    pub fn of(variant: u32) -> Self {
        Self { variant, shadow: 0 }
    }

    /// This variant for a request that takes no part in an experiment: it is
    /// counted apart, and says nothing about the variant.
    pub fn outside(variant: u32) -> Self {
        Self { variant, shadow: 1 << (variant % u32::BITS) }
    }
}

/// What became known about an answer of a version after it was given.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub version: u64,
    pub metric: String,
    pub value: f64,
}

/// A configured router, as the export shims call it.
trait Run {
    fn route(&self, key_hash: u64, seed: u64, matched: u64) -> Choice;
    fn learn(&mut self, events: &[Event]) -> Result<Vec<u8>>;
    fn install(&mut self, state: &[u8]) -> Result<()>;
}

impl<R: Router> Run for R {
    fn route(&self, key_hash: u64, seed: u64, matched: u64) -> Choice {
        Router::route(self, key_hash, seed, matched)
    }

    fn learn(&mut self, events: &[Event]) -> Result<Vec<u8>> {
        Router::learn(self, events)
    }

    fn install(&mut self, state: &[u8]) -> Result<()> {
        Router::install(self, state)
    }
}

thread_local! {
    /// An instance serves one router, and runs on one thread at a time.
    static ROUTER: RefCell<Option<Box<dyn Run>>> = const { RefCell::new(None) };
}

fn with_router<T>(run: impl FnOnce(&mut dyn Run) -> Result<T>) -> Result<T> {
    ROUTER.with_borrow_mut(|router| match router {
        Some(router) => run(&mut **router),
        None => Err(Error::failed("the router is not configured")),
    })
}

/// The router world's exports for `R`.
#[doc(hidden)]
pub struct RouterExport<R>(PhantomData<R>);

impl<R: Router> raw::Guest for RouterExport<R> {
    fn configure(
        variants: Vec<raw::Candidate>,
        config: String,
    ) -> Result<Vec<raw::Probe>, raw_types::Error> {
        log::install_panic_hook();
        let variants: Vec<Candidate> = variants.into_iter().map(Candidate::from).collect();
        let (router, probes) = R::configure(&variants, &Context::new(config))?;
        ROUTER.set(Some(Box::new(router)));
        Ok(probes.into_iter().map(raw::Probe::from).collect())
    }

    fn route(key_hash: u64, seed: u64, matched: u64) -> raw::Choice {
        let choice = ROUTER.with_borrow(|router| match router {
            Some(router) => router.route(key_hash, seed, matched),
            // The host configures first; no variant has this index.
            None => Choice::of(u32::MAX),
        });
        raw::Choice { index: choice.variant, shadow: choice.shadow }
    }

    fn learn(events: Vec<raw::Event>) -> Result<Vec<u8>, raw_types::Error> {
        let event = |event: raw::Event| Event {
            version: event.version,
            metric: event.metric,
            value: event.value,
        };
        let events: Vec<Event> = events.into_iter().map(event).collect();
        Ok(with_router(|router| router.learn(&events))?)
    }

    fn install(state: Vec<u8>) -> Result<(), raw_types::Error> {
        Ok(with_router(|router| router.install(&state))?)
    }
}

impl From<raw::Candidate> for Candidate {
    fn from(raw: raw::Candidate) -> Self {
        Self { version: raw.version, weight: raw.weight, stable: raw.stable }
    }
}

impl From<Probe> for raw::Probe {
    fn from(probe: Probe) -> Self {
        let place = match probe.place {
            Place::Header(name) => raw::Place::Header(name),
            Place::Parameter(name) => raw::Place::Parameter(name),
        };
        Self { place, literal: probe.literal }
    }
}

/// Exports a type that implements [`Router`] as the component's router. Call it
/// once, at the top level of the plugin's crate.
#[macro_export]
macro_rules! export_router {
    ($router:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type MortiseExport = $crate::__private::RouterExport<$router>;
            $crate::__private::router::export_router_world!(
                MortiseExport with_types_in $crate::__private::router
            );
        };
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn(&$router, u64, u64, u64) -> $crate::Choice = <$router as $crate::Router>::route;
    };
}
