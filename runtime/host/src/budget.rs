use crate::clock::{TICK, Tick};
use crate::limits::{LimitHit, Refusal};
use mortise_types::{Error, RunControl};
use std::time::{Duration, Instant};

pub(crate) const LOAD_TIMEOUT: &str = "load_timeout";
pub(crate) const CALL_TIMEOUT: &str = "call_timeout";

/// A call that is over sooner never reads the machine's clock, which would
/// cost a tenth of it; a request's deadline is first looked at after this.
const FIRST_LOOK: Duration = Duration::from_millis(3);

/// CPU time of a brief run, counted from the first tick in it, after which it
/// is stopped. Not wall time: a thread that had to wait for a core has held
/// nobody up.
const BRIEF: Duration = Duration::from_millis(1);

/// What the graphs of a brief run may take together.
const BRIEF_GRAPHS: Duration = Duration::from_millis(10);

/// Longest time until the clock is looked at again.
const LONGEST_SLICE: Duration = Duration::from_secs(3600);

/// How long one entry into a plugin may still take. Pure: it is told the time.
///
/// Two clocks run. The plugin's own is counted in ticks, which come late
/// rather than early, and stops while the host runs a graph for it; the
/// request's is the machine's.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    /// The field of `PluginLimits` that the plugin's own time comes from.
    name: &'static str,
    own_limit: Duration,
    entered: Tick,
    graph_limit: Duration,
    graph_spent: Duration,
    request_until: Option<Instant>,
    brief: Option<Brief>,
}

/// Of a run that must not hold its thread for long.
#[derive(Clone, Copy, Debug, Default)]
struct Brief {
    /// CPU time of the thread at the first look.
    since: Option<Duration>,
}

impl Budget {
    pub(crate) fn new(
        name: &'static str,
        own_limit: Duration,
        graph_limit: Duration,
        request_until: Option<Instant>,
        entered: Tick,
    ) -> Self {
        let graph_spent = Duration::ZERO;
        Self { name, own_limit, entered, graph_limit, graph_spent, request_until, brief: None }
    }

    /// For a run that is stopped after a moment.
    pub(crate) fn brief(self) -> Self {
        let graph_limit = self.graph_limit.min(BRIEF_GRAPHS);
        Self { graph_limit, brief: Some(Brief::default()), ..self }
    }

    pub(crate) fn is_brief(&self) -> bool {
        self.brief.is_some()
    }

    /// Whether the moment of a brief run is over. `cpu` is what its thread has
    /// used so far.
    pub(crate) fn moment_is_over(&mut self, cpu: Duration) -> bool {
        let Some(brief) = &mut self.brief else { return false };
        let since = *brief.since.get_or_insert(cpu);
        cpu.saturating_sub(since) >= BRIEF
    }

    /// Whether the plugin was entered to load.
    pub(crate) fn is_load(&self) -> bool {
        self.name == LOAD_TIMEOUT
    }

    /// Ticks until the time is first looked at.
    pub(crate) fn first_slice(&self) -> u64 {
        match self.request_until {
            _ if self.is_brief() => EACH_TICK,
            Some(_) => ticks(self.own_limit.min(FIRST_LOOK)),
            None => ticks(self.own_limit),
        }
    }

    /// Ticks until [`Budget::expired`] can say yes.
    pub(crate) fn slice(&self, tick: Tick, now: Instant) -> u64 {
        if self.is_brief() {
            return EACH_TICK;
        }
        let own = self.own_left(tick);
        ticks(self.request_until.map_or(own, |until| own.min(until.saturating_duration_since(now))))
    }

    /// Why the plugin must stop now, if it must.
    pub(crate) fn expired(&self, tick: Tick, now: Instant) -> Option<Refusal> {
        if self.request_until.is_some_and(|until| now >= until) {
            let message = "the request's deadline passed while the plugin was running";
            return Some(Refusal::Other(Error::deadline(message)));
        }
        let is_over = self.own_left(tick).is_zero();
        is_over.then(|| Refusal::Limit(LimitHit::time(self.name, self.own_limit)))
    }

    /// The tick during which the plugin was entered had begun before, so it
    /// does not count.
    fn own_left(&self, tick: Tick) -> Duration {
        let whole = tick.0.saturating_sub(self.entered.0).saturating_sub(1);
        let inside = Duration::from_millis(whole).saturating_sub(self.graph_spent);
        self.own_limit.saturating_sub(inside)
    }

    /// What bounds a graph that the plugin runs now.
    pub(crate) fn graph_control(&self, control: &RunControl, now: Instant) -> RunControl {
        control.until(now + self.graph_limit.saturating_sub(self.graph_spent))
    }

    /// Ticks until a graph that the plugin runs now is over at the latest: the
    /// clock must not rest meanwhile, or what the plugin used before would be
    /// taken for the graph's.
    pub(crate) fn graph_ticks(&self) -> u64 {
        ticks(self.graph_limit.saturating_sub(self.graph_spent))
    }

    /// Gives back the time that a graph took.
    ///
    /// # Errors
    /// When the graphs of this entry took more than their own limit, or than a
    /// brief run has.
    pub(crate) fn spent_on_graph(&mut self, spent: Duration) -> Result<(), Refusal> {
        self.graph_spent += spent;
        if self.graph_spent >= self.graph_limit {
            if self.is_brief() {
                return Err(moment_over());
            }
            return Err(Refusal::Limit(LimitHit::time("graph_timeout", self.graph_limit)));
        }
        Ok(())
    }
}

/// Ticks between two looks at a brief run.
const EACH_TICK: u64 = 1;

/// A brief run is stopped. Whoever started it makes it again, so that nobody
/// reads this.
pub(crate) fn moment_over() -> Refusal {
    Refusal::Other(Error::deadline("the plugin took longer than a brief run may"))
}

/// At least one: a deadline of no ticks traps before the time is looked at.
fn ticks(time: Duration) -> u64 {
    const { assert!(TICK.as_millis() == 1, "this counts milliseconds") };
    let time = time.min(LONGEST_SLICE);
    time.as_secs() * 1000 + u64::from(time.subsec_millis()) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn name(refusal: Option<Refusal>) -> &'static str {
        match refusal {
            None => "runs",
            Some(Refusal::Limit(hit)) => hit.name,
            Some(Refusal::Other(_)) => "request",
        }
    }

    #[test]
    fn the_nearer_clock_stops_the_plugin() {
        let now = Instant::now();
        let cases = [
            (None, 0, "runs"),
            (None, 2000, "runs"),
            (None, 2001, "call_timeout"),
            (Some(1), 1000, "request"),
            (Some(3), 2001, "call_timeout"),
            (Some(3), 1000, "runs"),
        ];
        for (request, after, want) in cases {
            let request = request.map(|seconds| now + SECOND * seconds);
            let budget = Budget::new("call_timeout", SECOND * 2, SECOND, request, Tick(7));
            let later = now + Duration::from_millis(after);
            let refusal = budget.expired(Tick(7 + after), later);
            assert_eq!(name(refusal), want, "{request:?} {after}");
        }
    }

    #[test]
    fn the_time_is_looked_at_when_it_can_be_over() {
        let now = Instant::now();
        let long = Budget::new("call_timeout", SECOND * 2, SECOND, None, Tick(0));
        assert_eq!((long.first_slice(), long.slice(Tick(1001), now)), (2001, 1001));
        let request = Some(now + SECOND);
        let short = Budget::new("call_timeout", SECOND * 2, SECOND, request, Tick(0));
        assert_eq!((short.first_slice(), short.slice(Tick(4), now)), (4, 1001));
    }

    #[test]
    fn a_brief_run_is_looked_at_each_tick_and_ends_by_cpu_time() {
        let now = Instant::now();
        let until = Some(now + SECOND);
        let mut brief = Budget::new("call_timeout", SECOND, SECOND, until, Tick(0)).brief();
        assert_eq!((brief.first_slice(), brief.slice(Tick(1), now)), (1, 1));
        assert!(!brief.moment_is_over(SECOND), "the first look only remembers");
        assert!(!brief.moment_is_over(SECOND + BRIEF / 2));
        assert!(brief.moment_is_over(SECOND + BRIEF));
        assert!(brief.spent_on_graph(BRIEF_GRAPHS / 2).is_ok());
        assert!(brief.spent_on_graph(BRIEF_GRAPHS / 2).is_err());
        let mut long = Budget::new("call_timeout", SECOND, SECOND, until, Tick(0));
        assert!(!long.moment_is_over(Duration::ZERO) && !long.moment_is_over(SECOND));
    }

    #[test]
    fn time_in_graphs_is_given_back_and_has_its_own_limit() {
        let mut budget = Budget::new("call_timeout", SECOND, SECOND * 3, None, Tick(0));
        assert!(budget.spent_on_graph(SECOND * 2).is_ok());
        assert_eq!(budget.own_left(Tick(2001)), SECOND);
        assert_eq!(budget.own_left(Tick(2501)), SECOND / 2);
        assert_eq!(name(budget.spent_on_graph(SECOND).err()), "graph_timeout");
    }
}
