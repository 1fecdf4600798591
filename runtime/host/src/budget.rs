use crate::limits::{LimitHit, Refusal};
use mortise_types::{Error, RunControl};
use std::time::{Duration, Instant};

pub(crate) const LOAD_TIMEOUT: &str = "load_timeout";
pub(crate) const CALL_TIMEOUT: &str = "call_timeout";

/// How long one entry into a plugin may still take. Pure: it is told the time.
///
/// Two clocks run. The plugin's own stops while the host runs a graph for it;
/// the request's does not.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    /// The field of `PluginLimits` that the plugin's own time comes from.
    name: &'static str,
    own_limit: Duration,
    own_until: Instant,
    graph_limit: Duration,
    graph_left: Duration,
    request_until: Option<Instant>,
}

impl Budget {
    pub(crate) fn new(
        name: &'static str,
        own_limit: Duration,
        graph_limit: Duration,
        request_until: Option<Instant>,
        now: Instant,
    ) -> Self {
        let own_until = now + own_limit;
        Self { name, own_limit, own_until, graph_limit, graph_left: graph_limit, request_until }
    }

    /// Whether the plugin was entered to load.
    pub(crate) fn is_load(&self) -> bool {
        self.name == LOAD_TIMEOUT
    }

    /// Why the plugin must stop now, if it must.
    pub(crate) fn expired(&self, now: Instant) -> Option<Refusal> {
        if self.request_until.is_some_and(|until| now >= until) {
            let message = "the request's deadline passed while the plugin was running";
            return Some(Refusal::Other(Error::deadline(message)));
        }
        (now >= self.own_until).then(|| Refusal::Limit(LimitHit::time(self.name, self.own_limit)))
    }

    /// Time until [`Budget::expired`] can say yes.
    pub(crate) fn left(&self, now: Instant) -> Duration {
        let until = self.request_until.map_or(self.own_until, |at| at.min(self.own_until));
        until.saturating_duration_since(now)
    }

    /// What bounds a graph that the plugin runs now.
    pub(crate) fn graph_control(&self, control: &RunControl, now: Instant) -> RunControl {
        control.until(now + self.graph_left)
    }

    /// Gives back the time that a graph took.
    ///
    /// # Errors
    /// When the graphs of this entry took more than their own limit.
    pub(crate) fn spent_on_graph(&mut self, spent: Duration) -> Result<(), Refusal> {
        self.own_until += spent;
        self.graph_left = self.graph_left.saturating_sub(spent);
        if self.graph_left.is_zero() {
            return Err(Refusal::Limit(LimitHit::time("graph_timeout", self.graph_limit)));
        }
        Ok(())
    }
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
            (None, 2, "call_timeout"),
            (Some(1), 1, "request"),
            (Some(3), 2, "call_timeout"),
            (Some(3), 1, "runs"),
        ];
        for (request, after, want) in cases {
            let request = request.map(|seconds| now + SECOND * seconds);
            let budget = Budget::new("call_timeout", SECOND * 2, SECOND, request, now);
            assert_eq!(name(budget.expired(now + SECOND * after)), want, "{request:?} {after}");
        }
    }

    #[test]
    fn time_in_graphs_is_given_back_and_has_its_own_limit() {
        let now = Instant::now();
        let mut budget = Budget::new("call_timeout", SECOND, SECOND * 3, None, now);
        assert!(budget.spent_on_graph(SECOND * 2).is_ok());
        assert_eq!(budget.left(now + SECOND * 2), SECOND);
        assert_eq!(name(budget.spent_on_graph(SECOND).err()), "graph_timeout");
    }
}
