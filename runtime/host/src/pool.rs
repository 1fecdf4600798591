use crate::failure::{Failure, Fault};
use crate::instance::{Instance, Loaded};
use crate::quarantine::Quarantine;
use crate::state::Shared;
use crate::{Compiled, Host, PluginHealth, PluginStats};
use mortise_types::{CutShort, Error, Result, RunControl, Signature, Tensor};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Warm instances of one plugin. Calls borrow the one used last; a thread of
/// low priority replaces those that failed.
pub(crate) struct Pool {
    host: Arc<Host>,
    compiled: Compiled,
    shared: Arc<Shared>,
    config_json: String,
    signature: Signature,
    slots: Mutex<Slots>,
    /// An instance came free, or the plugin went into quarantine.
    freed: Condvar,
    /// The plugin is being dropped.
    closing: Condvar,
    counts: Counts,
}

struct Slots {
    idle: Vec<Instance>,
    /// Idle or in a call.
    alive: usize,
    waiting: usize,
    quarantine: Quarantine,
    /// Where the last trap happened, until the thread that makes instances
    /// has time to say so.
    trace: Vec<String>,
    last_trap: Option<Arc<str>>,
    /// A thread is making instances.
    refilling: bool,
    closed: bool,
}

#[derive(Default)]
struct Counts {
    calls: AtomicU64,
    traps: AtomicU64,
    timeouts: AtomicU64,
    cut_short: AtomicU64,
    refused: AtomicU64,
    made: AtomicU64,
    quarantines: AtomicU64,
}

fn bump(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

impl Pool {
    /// A pool around its first, loaded instance; makes the others.
    pub(crate) fn fill(
        host: Arc<Host>,
        compiled: Compiled,
        shared: Arc<Shared>,
        config_json: String,
        first: (Instance, Signature),
    ) -> Result<Arc<Self>> {
        let limits = &shared.limits;
        let quarantine = Quarantine::new(
            limits.quarantine_after,
            limits.quarantine_backoff,
            limits.quarantine_backoff_max,
        );
        let slots = Slots {
            idle: vec![first.0],
            alive: 1,
            waiting: 0,
            quarantine,
            trace: Vec::new(),
            last_trap: None,
            refilling: false,
            closed: false,
        };
        let pool = Self {
            host,
            compiled,
            shared,
            config_json,
            signature: first.1,
            slots: Mutex::new(slots),
            freed: Condvar::new(),
            closing: Condvar::new(),
            counts: Counts { made: AtomicU64::new(1), ..Counts::default() },
        };
        for _ in 1..pool.target() {
            let instance = pool.make().map_err(|failure| failure.error)?;
            let mut slots = pool.slots.lock();
            slots.idle.push(instance);
            slots.alive += 1;
        }
        Ok(Arc::new(pool))
    }

    pub(crate) fn call(
        self: &Arc<Self>,
        inputs: Vec<Tensor>,
        control: &RunControl,
    ) -> Result<Vec<Tensor>> {
        let mut instance = self.take(control)?;
        bump(&self.counts.calls);
        let outcome = instance.call(inputs, control);
        if control.was_cut_short().is_some() {
            return Err(self.cut_short(instance, outcome));
        }
        match outcome {
            Ok(outputs) => {
                self.give_back(instance, true);
                check_answer(&self.shared, &self.signature, &outputs)?;
                Ok(outputs)
            }
            Err(failure) if !failure.retire && failure.fault.is_none() => {
                self.give_back(instance, true);
                Err(failure.error)
            }
            Err(failure) => {
                let error = failure.error.clone();
                self.failed(instance, failure);
                Err(error)
            }
        }
    }

    /// Ends a brief call that is made again: it says nothing of the plugin.
    fn cut_short(
        self: &Arc<Self>,
        instance: Instance,
        outcome: Result<Vec<Tensor>, Failure>,
    ) -> Error {
        bump(&self.counts.cut_short);
        match outcome {
            Err(failure) if failure.retire => {
                self.slots.lock().alive -= 1;
                self.freed.notify_all();
                drop(instance);
                self.refill();
                failure.error
            }
            outcome => {
                self.give_back(instance, false);
                outcome.err().map_or_else(busy, |failure| failure.error)
            }
        }
    }

    pub(crate) fn health(&self) -> PluginHealth {
        let slots = self.slots.lock();
        match slots.quarantine.closed(Instant::now()) {
            Some((reason, retry_in)) => {
                PluginHealth::Quarantined { reason: reason.to_owned(), retry_in }
            }
            None => PluginHealth::Ready,
        }
    }

    pub(crate) fn stats(&self) -> PluginStats {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let slots = self.slots.lock();
        let (instances, last_trap) = (slots.alive, slots.last_trap.clone());
        drop(slots);
        PluginStats {
            calls: get(&self.counts.calls),
            traps: get(&self.counts.traps),
            timeouts: get(&self.counts.timeouts),
            cut_short: get(&self.counts.cut_short),
            refused: get(&self.counts.refused),
            instances,
            last_trap,
            instances_made: get(&self.counts.made),
            quarantines: get(&self.counts.quarantines),
            log_lines_dropped: self.shared.log.dropped(),
            limits_hit: self.shared.limits_hit.lock().clone(),
        }
    }

    /// Ends the refilling thread and lets all instances go.
    pub(crate) fn close(&self) {
        let mut slots = self.slots.lock();
        slots.closed = true;
        let idle = std::mem::take(&mut slots.idle);
        drop(slots);
        self.closing.notify_all();
        self.freed.notify_all();
        drop(idle);
    }

    fn target(&self) -> usize {
        self.shared.limits.instances.max(1)
    }

    /// Waits for a free instance until the request's deadline, or for
    /// `call_timeout` if it has none; a brief run does not wait.
    fn take(&self, control: &RunControl) -> Result<Instance> {
        let mut slots = self.slots.lock();
        if let Some(instance) = self.free(&mut slots)? {
            return Ok(instance);
        }
        if control.is_brief() {
            control.cut_short(CutShort::Busy);
            return Err(busy());
        }
        let limits = &self.shared.limits;
        if slots.waiting >= limits.max_waiting_calls {
            let limit = limits.max_waiting_calls;
            return Err(self.refuse(format!("max_waiting_calls = {limit} wait already")));
        }
        let start = Instant::now();
        let until = control.deadline().unwrap_or(start + limits.call_timeout);
        slots.waiting += 1;
        let taken = self.wait(&mut slots, until);
        slots.waiting -= 1;
        match taken? {
            Some(instance) => Ok(instance),
            None => Err(self.refuse(format!("none came free in {:?}", start.elapsed()))),
        }
    }

    fn wait(&self, slots: &mut MutexGuard<'_, Slots>, until: Instant) -> Result<Option<Instance>> {
        loop {
            if let Some(instance) = self.free(slots)? {
                return Ok(Some(instance));
            }
            if slots.closed || self.freed.wait_until(slots, until).timed_out() {
                return self.free(slots);
            }
        }
    }

    /// The instance used last: its memory is the warmest.
    fn free(&self, slots: &mut Slots) -> Result<Option<Instance>> {
        if slots.quarantine.is_closed()
            && let Some((reason, retry_in)) = slots.quarantine.closed(Instant::now())
        {
            bump(&self.counts.refused);
            let Shared { plugin, endpoint, .. } = &*self.shared;
            return Err(Error::not_ready(format!(
                "plugin \"{plugin}\" of endpoint \"{endpoint}\" is in quarantine for another \
                 {retry_in:.1?} because it keeps failing, last with: {reason}"
            )));
        }
        Ok(slots.idle.pop())
    }

    fn refuse(&self, why: String) -> Error {
        bump(&self.counts.refused);
        let Shared { plugin, endpoint, .. } = &*self.shared;
        Error::overloaded(format!(
            "all {} instances of plugin \"{plugin}\" of endpoint \"{endpoint}\" are busy: {why}",
            self.target()
        ))
    }

    fn give_back(self: &Arc<Self>, instance: Instance, answered: bool) {
        let mut slots = self.slots.lock();
        if answered {
            slots.quarantine.success();
        }
        if slots.closed || slots.quarantine.is_closed() {
            slots.alive -= 1;
            drop(slots);
            drop(instance);
            return;
        }
        slots.idle.push(instance);
        let short = slots.alive < self.target();
        drop(slots);
        self.freed.notify_one();
        if short {
            self.refill();
        }
    }

    /// Counts a failed call, and retires its instance if it is spoilt.
    fn failed(self: &Arc<Self>, instance: Instance, failure: Failure) {
        match failure.fault {
            Some(Fault::Trap) => bump(&self.counts.traps),
            Some(Fault::Timeout) => bump(&self.counts.timeouts),
            Some(Fault::Limit) => {}
            None => bump(&self.counts.timeouts),
        }
        let mut slots = self.slots.lock();
        let mut retired = Vec::new();
        if failure.fault.is_some()
            && slots.quarantine.failure(self.reason(&failure), Instant::now())
        {
            bump(&self.counts.quarantines);
            retired = std::mem::take(&mut slots.idle);
            slots.alive -= retired.len();
        }
        if !failure.retire {
            drop(slots);
            return self.give_back(instance, false);
        }
        slots.alive -= 1;
        slots.trace = failure.trace;
        drop(slots);
        self.freed.notify_all();
        drop((instance, retired));
        self.refill();
    }

    /// What a quarantine is told: its own message names the plugin.
    fn reason<'a>(&self, failure: &'a Failure) -> &'a str {
        let message = failure.error.message();
        let name = self.shared.name();
        message.strip_prefix(&*name).map_or(message, |rest| rest.trim_start_matches([':', ' ']))
    }

    /// Says in the log where a plugin trapped, in names that people can read.
    fn tell_trace(&self) {
        let mut slots = self.slots.lock();
        let trace = std::mem::take(&mut slots.trace);
        if trace.is_empty() {
            return;
        }
        drop(slots);
        let text: Arc<str> = crate::failure::readable(&trace).into();
        let Shared { plugin, endpoint, .. } = &*self.shared;
        tracing::warn!(target: "plugin", plugin, endpoint, "it trapped in {text}");
        self.slots.lock().last_trap = Some(text);
    }

    /// Starts a thread that makes the missing instances, unless one runs.
    fn refill(self: &Arc<Self>) {
        let mut slots = self.slots.lock();
        if slots.refilling || slots.closed {
            return;
        }
        slots.refilling = true;
        drop(slots);
        let pool = self.clone();
        let started = std::thread::Builder::new().name("plugin-refill".into()).spawn(move || {
            lower_priority();
            pool.tell_trace();
            pool.refill_loop();
        });
        if let Err(error) = started {
            // The next call that fails or is answered tries again.
            tracing::error!("cannot start a thread to replace plugin instances: {error}");
            self.slots.lock().refilling = false;
        }
    }

    fn refill_loop(&self) {
        while self.wait_for_gap() {
            self.tell_trace();
            let made = self.make();
            let mut slots = self.slots.lock();
            match made {
                Ok(instance) if !slots.closed => {
                    slots.idle.push(instance);
                    slots.alive += 1;
                }
                Ok(_) => {}
                Err(failure) => {
                    bump(&self.counts.quarantines);
                    slots.quarantine.load_failed(self.reason(&failure), Instant::now());
                }
            }
            drop(slots);
            self.freed.notify_all();
        }
    }

    /// Waits out a quarantine. Returns whether an instance is missing; if not,
    /// this thread is no longer the one that refills.
    fn wait_for_gap(&self) -> bool {
        let mut slots = self.slots.lock();
        loop {
            if slots.closed {
                slots.refilling = false;
                return false;
            }
            if let Some(left) = slots.quarantine.reopen(Instant::now()) {
                self.closing.wait_for(&mut slots, left);
                continue;
            }
            // One instance is enough to see whether the plugin works again.
            let target = if slots.quarantine.probing().is_some() { 1 } else { self.target() };
            slots.refilling = slots.alive < target;
            return slots.refilling;
        }
    }

    /// Makes and loads one more instance.
    fn make(&self) -> Result<Instance, Failure> {
        let world = self.compiled.world();
        let mut instance = Instance::new(&self.host, &self.compiled.code, world, &self.shared)?;
        match instance.load(&self.config_json)? {
            Loaded::Custom(signature) if signature == self.signature => {
                bump(&self.counts.made);
                Ok(instance)
            }
            _ => Err(Failure::of_host(Error::plugin(format!(
                "plugin \"{}\" of endpoint \"{}\" returned another plan or signature from a second \
                 load; it must depend on nothing but the configuration and the assets",
                self.shared.plugin, self.shared.endpoint
            )))),
        }
    }
}

/// Nobody reads this: a brief run is made again.
fn busy() -> Error {
    Error::overloaded("no instance was free for a brief run")
}

/// Loading must not take time from serving.
fn lower_priority() {
    // SAFETY: takes plain numbers; on Linux, 0 means the calling thread alone.
    // A refusal leaves the priority as it is.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, crate::worker::BACKGROUND_NICE);
    }
}

/// Holds an answer against the signature.
fn check_answer(shared: &Shared, signature: &Signature, outputs: &[Tensor]) -> Result<()> {
    let wrong = |what: String| {
        let Shared { plugin, endpoint, .. } = shared;
        Error::plugin(format!(
            "plugin \"{plugin}\" of endpoint \"{endpoint}\" gave an answer that does not fit its \
             signature: {what}"
        ))
    };
    if outputs.len() != signature.outputs.len() {
        let (got, want) = (outputs.len(), signature.outputs.len());
        return Err(wrong(format!("{got} tensor(s) instead of {want}")));
    }
    signature
        .outputs
        .iter()
        .zip(outputs)
        .try_for_each(|(spec, tensor)| spec.check(tensor))
        .map_err(|error| wrong(error.message().to_owned()))
}
