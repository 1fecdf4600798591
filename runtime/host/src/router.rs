use crate::bindings::router_world::Router as Bindings;
use crate::bindings::router_world::exports::mortise::plugin::router_api as raw;
use crate::clock::TICK;
use crate::failure::{Failure, Fault};
use crate::policy::{Entered, PolicyCode, PolicyRequest};
use crate::quarantine::Quarantine;
use crate::{Compiled, Host, World};
use arc_swap::ArcSwapOption;
use mortise_types::{Error, Result};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

/// Variants of one endpoint.
pub const MAX_VARIANTS: usize = 32;
/// Probes that a router may ask.
pub const MAX_PROBES: usize = 64;

/// Bytes of the state that a router publishes.
const MAX_STATE_BYTES: usize = 1 << 20;

/// Routers that one thread keeps instances of; the one used longest ago goes.
const MAX_LOCAL: usize = 64;

/// Ticks of the plugin clock, of a millisecond each, that one `route` may take.
/// It needs less than a microsecond; the rest is for a thread that loses its
/// core meanwhile.
const ROUTE_TICKS: u32 = 20;

/// A configured router. Threads that route keep an instance each, so that
/// routing takes no lock.
pub struct RouterPlugin {
    code: PolicyCode,
    variants: Vec<RouteVariant>,
    probes: Vec<Probe>,
    /// What `learn` published last, and how often it did.
    state: ArcSwapOption<Published>,
    /// Told to threads without their loading the state.
    state_number: AtomicU64,
    learner: Mutex<Option<Entered<Bindings>>>,
    health: Mutex<Quarantine>,
    /// Calls are pointless for now; read without the lock.
    is_closed: AtomicBool,
    counts: Counts,
}

struct Published {
    number: u64,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Counts {
    traps: AtomicU64,
    refused: AtomicU64,
    instances_made: AtomicU64,
    last_failure: Mutex<Option<String>>,
}

/// A version that takes part in an endpoint's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteVariant {
    pub version: u64,
    /// In parts of 10,000.
    pub weight: u32,
    pub stable: bool,
}

/// A question about each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub place: Place,
    /// The whole value; `None` asks whether there is one.
    pub literal: Option<String>,
}

/// Where in a request to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In lower case.
    Header(String),
    Parameter(String),
}

/// Where one request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteChoice {
    /// Index into the variants.
    pub variant: usize,
    /// Bit `i` sends a copy to variant `i`; never the one that answers.
    pub shadow: u32,
    /// The request takes no part in an experiment.
    pub is_outside: bool,
}

/// Something that became known about answers of a version.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutingEvent {
    pub version: u64,
    pub metric: String,
    pub value: f64,
}

/// Counts since the router was configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouterStats {
    /// Calls that trapped, ran too long or named a variant that is not there.
    pub traps: u64,
    /// Requests that were not asked about, because the router keeps failing.
    pub refused: u64,
    pub instances_made: u64,
    pub last_failure: Option<String>,
}

thread_local! {
    static LOCAL: RefCell<Vec<Local>> = const { RefCell::new(Vec::new()) };
}

/// This thread's instance of one router.
struct Local {
    router: Weak<RouterPlugin>,
    instance: Entered<Bindings>,
    state_number: u64,
}

impl RouterPlugin {
    /// Configures the router for these variants. Blocking, and needs 1 MiB of
    /// stack.
    ///
    /// # Errors
    /// When the component is of another world, or refuses its configuration.
    pub fn load(
        host: &Arc<Host>,
        compiled: &Compiled,
        request: PolicyRequest,
        variants: Vec<RouteVariant>,
    ) -> Result<Arc<Self>> {
        if variants.is_empty() || variants.len() > MAX_VARIANTS {
            return Err(Error::invalid(format!(
                "a router chooses among 1 to {MAX_VARIANTS} versions, not {}",
                variants.len()
            )));
        }
        let limits = &request.limits;
        let health = Quarantine::new(
            limits.quarantine_after,
            limits.quarantine_backoff,
            limits.quarantine_backoff_max,
        );
        let code = PolicyCode::new(host, compiled, World::Router, request)?;
        let (instance, probes) = configure(&code, &variants).map_err(|failure| failure.error)?;
        if probes.len() > MAX_PROBES {
            return Err(Error::plugin(format!(
                "plugin \"{}\" asks {} probes of each request; at most {MAX_PROBES} are answered",
                code.shared.plugin,
                probes.len()
            )));
        }
        Ok(Arc::new(Self {
            code,
            variants,
            probes,
            state: ArcSwapOption::empty(),
            state_number: AtomicU64::new(0),
            learner: Mutex::new(Some(instance)),
            health: Mutex::new(health),
            is_closed: AtomicBool::new(false),
            counts: Counts::default(),
        }))
    }

    /// The questions to answer about each request, in order.
    pub fn probes(&self) -> &[Probe] {
        &self.probes
    }

    /// Chooses for one request, on this thread's own instance. `None` when the
    /// router fails or keeps failing: the stable variant answers.
    pub fn route(self: &Arc<Self>, key_hash: u64, seed: u64, matched: u64) -> Option<RouteChoice> {
        if self.is_closed.load(Ordering::Relaxed) && !self.may_probe() {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let choice = LOCAL.with_borrow_mut(|local| {
            let at = self.local_instance(local)?;
            match self.ask(&mut local[at], (key_hash, seed, matched)) {
                Ok(choice) => Ok(choice),
                Err(failure) => {
                    local.swap_remove(at);
                    Err(failure)
                }
            }
        });
        match choice {
            Ok(choice) => Some(choice),
            Err(failure) => {
                self.failed(&failure);
                None
            }
        }
    }

    /// Hands events to the router and publishes what it learned. Blocking for
    /// up to `call_timeout`.
    ///
    /// # Errors
    /// What the plugin returned, or why it failed; the state stays as it was.
    pub fn learn(&self, events: &[RoutingEvent]) -> Result<Vec<u8>> {
        let events: Vec<raw::Event> = events.iter().map(raw::Event::from).collect();
        let bytes = self.with_learner("learn", |bindings, store| {
            bindings.mortise_plugin_router_api().call_learn(store, &events)
        })?;
        if bytes.len() > MAX_STATE_BYTES {
            return Err(Error::plugin(format!(
                "plugin \"{}\" published {} bytes of state; at most {MAX_STATE_BYTES} are kept",
                self.code.shared.plugin,
                bytes.len()
            )));
        }
        self.publish(bytes.clone());
        Ok(bytes)
    }

    /// Goes on from a state that was published before.
    ///
    /// # Errors
    /// When the plugin cannot read it.
    pub fn install(&self, state: Vec<u8>) -> Result<()> {
        self.with_learner("install", |bindings, store| {
            bindings.mortise_plugin_router_api().call_install(store, &state)
        })?;
        self.publish(state);
        Ok(())
    }

    pub fn stats(&self) -> RouterStats {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        RouterStats {
            traps: get(&self.counts.traps),
            refused: get(&self.counts.refused),
            instances_made: get(&self.counts.instances_made),
            last_failure: self.counts.last_failure.lock().clone(),
        }
    }

    fn publish(&self, bytes: Vec<u8>) {
        let number = self.state_number.load(Ordering::Relaxed) + 1;
        self.state.store(Some(Arc::new(Published { number, bytes })));
        self.state_number.store(number, Ordering::Release);
    }

    /// Where this thread's instance stands; makes one if need be.
    fn local_instance(self: &Arc<Self>, local: &mut Vec<Local>) -> Result<usize, Failure> {
        let ours = Arc::as_ptr(self);
        if let Some(at) = local.iter().position(|local| local.router.as_ptr() == ours) {
            return Ok(at);
        }
        local.retain(|local| local.router.strong_count() > 0);
        if local.len() >= MAX_LOCAL {
            local.remove(0);
        }
        let (instance, _) = configure(&self.code, &self.variants)?;
        self.counts.instances_made.fetch_add(1, Ordering::Relaxed);
        local.push(Local { router: Arc::downgrade(self), instance, state_number: 0 });
        Ok(local.len() - 1)
    }

    fn ask(&self, local: &mut Local, request: (u64, u64, u64)) -> Result<RouteChoice, Failure> {
        if local.state_number != self.state_number.load(Ordering::Acquire) {
            self.install_on(local)?;
        }
        let Entered { store, bindings, .. } = &mut local.instance;
        let slice = store.data_mut().begin_short("route_timeout", TICK * ROUTE_TICKS);
        store.set_epoch_deadline(slice);
        let (key_hash, seed, matched) = request;
        let api = bindings.mortise_plugin_router_api();
        match api.call_route(&mut *store, key_hash, seed, matched) {
            Ok(choice) => self.check(choice),
            Err(error) => Err(local.instance.failed("route", error)),
        }
    }

    fn check(&self, choice: raw::Choice) -> Result<RouteChoice, Failure> {
        let variant = choice.index as usize;
        if variant < self.variants.len() {
            // What the contract means by the bit of the variant that answers.
            let own = 1 << choice.index;
            let (shadow, is_outside) = (choice.shadow & !own, choice.shadow & own != 0);
            return Ok(RouteChoice { variant, shadow, is_outside });
        }
        let error = Error::plugin(format!(
            "plugin \"{}\" chose variant {variant} of {}",
            self.code.shared.plugin,
            self.variants.len()
        ));
        Err(Failure { error, retire: true, fault: Some(Fault::Trap), trace: Vec::new() })
    }

    /// A state that this instance cannot read is skipped: it routes on as it
    /// was configured.
    fn install_on(&self, local: &mut Local) -> Result<(), Failure> {
        let Some(published) = self.state.load_full() else { return Ok(()) };
        local.state_number = published.number;
        let installed = local.instance.call("install", |bindings, store| {
            bindings.mortise_plugin_router_api().call_install(store, &published.bytes)
        });
        match installed {
            Err(failure) if failure.retire => Err(failure),
            _ => Ok(()),
        }
    }

    fn with_learner<T>(
        &self,
        name: &'static str,
        call: impl FnOnce(
            &Bindings,
            &mut wasmtime::Store<crate::state::State>,
        ) -> wasmtime::Result<Result<T, crate::bindings::types::Error>>,
    ) -> Result<T> {
        let mut slot = self.learner.lock();
        let mut instance = match slot.take() {
            Some(instance) => instance,
            None => self.new_learner()?,
        };
        let outcome = instance.call(name, call);
        if !matches!(&outcome, Err(failure) if failure.retire) {
            *slot = Some(instance);
        }
        outcome.map_err(|failure| failure.error)
    }

    /// An instance that knows what the one before it published.
    fn new_learner(&self) -> Result<Entered<Bindings>> {
        let learner = || {
            let (mut instance, _) = configure(&self.code, &self.variants)?;
            if let Some(published) = self.state.load_full() {
                instance.call("install", |bindings, store| {
                    bindings.mortise_plugin_router_api().call_install(store, &published.bytes)
                })?;
            }
            Ok(instance)
        };
        learner().map_err(|failure: Failure| failure.error)
    }

    /// Whether a quarantine is over, so that one more request may try.
    #[cold]
    fn may_probe(&self) -> bool {
        let mut health = self.health.lock();
        let is_open = health.reopen(Instant::now()).is_none();
        self.is_closed.store(!is_open, Ordering::Relaxed);
        is_open
    }

    #[cold]
    fn failed(&self, failure: &Failure) {
        self.counts.traps.fetch_add(1, Ordering::Relaxed);
        let reason = failure.error.message();
        let is_closed = self.health.lock().failure(reason, Instant::now());
        *self.counts.last_failure.lock() = Some(reason.to_owned());
        if is_closed {
            self.is_closed.store(true, Ordering::Relaxed);
            let (plugin, endpoint) = (&self.code.shared.plugin, &self.code.shared.endpoint);
            tracing::warn!(plugin, endpoint, reason, "a router keeps failing; stable answers");
        }
    }
}

fn configure(
    code: &PolicyCode,
    variants: &[RouteVariant],
) -> Result<(Entered<Bindings>, Vec<Probe>), Failure> {
    let mut instance = code.enter(|store, instance| Bindings::new(store, instance))?;
    let variants: Vec<raw::Candidate> = variants.iter().map(raw::Candidate::from).collect();
    let probes = instance.call("configure", |bindings, store| {
        let api = bindings.mortise_plugin_router_api();
        api.call_configure(store, &variants, &code.config_json)
    })?;
    Ok((instance, probes.into_iter().map(Probe::from).collect()))
}

impl From<&RouteVariant> for raw::Candidate {
    fn from(variant: &RouteVariant) -> Self {
        Self { version: variant.version, weight: variant.weight, stable: variant.stable }
    }
}

impl From<&RoutingEvent> for raw::Event {
    fn from(event: &RoutingEvent) -> Self {
        Self { version: event.version, metric: event.metric.clone(), value: event.value }
    }
}

impl From<raw::Probe> for Probe {
    fn from(probe: raw::Probe) -> Self {
        let place = match probe.place {
            raw::Place::Header(name) => Place::Header(name.to_ascii_lowercase()),
            raw::Place::Parameter(name) => Place::Parameter(name),
        };
        Self { place, literal: probe.literal }
    }
}
