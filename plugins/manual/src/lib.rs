//! A strategy that never moves traffic by itself: an operator does, with
//! `mortise rollout weight`, `promote` and `abort`. It fits experiments, whose
//! router decides who gets what.
//!
//! **Configuration**, optional: `weight`, the candidate's share at the
//! beginning in percent, 0 by default. It cannot be given when this strategy takes
//! over from another one: the traffic stays where it is.

use mortise_plugin_sdk::{
    Action, Context, Error, Observation, Plan, Result, Strategy, Verdict, export_strategy,
};
use serde::Deserialize;

/// Between evaluations: they only keep the counts.
const CHECK_EVERY_MS: u64 = 1_000;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    weight: Option<f64>,
}

struct Manual;

impl Strategy for Manual {
    fn begin(ctx: &Context, state: Option<&[u8]>) -> Result<Plan> {
        let config: Config = ctx.config()?;
        if state.is_some() && config.weight.is_some() {
            return Err(Error::invalid(
                "weight says where a rollout begins, and this one has begun: take over without it, \
                 and move the traffic with `mortise rollout weight NAME PERCENT`",
            ));
        }
        let percent = config.weight.unwrap_or(0.0);
        if !(0.0..=100.0).contains(&percent) {
            return Err(Error::invalid("weight must be a share of 0 to 100 percent"));
        }
        // Whatever strategy was in charge before may be again: keep its state.
        let state = state.unwrap_or_default().to_vec();
        let weight = (percent * 100.0).round() as u32;
        Ok(Plan { weight, check_every_ms: CHECK_EVERY_MS, state })
    }

    fn evaluate(_: &Context, observed: &Observation, state: &[u8]) -> Result<Verdict> {
        let percent = f64::from(observed.weight) / 100.0;
        Ok(Verdict {
            action: Action::Hold,
            reason: format!("at {percent} % until an operator says otherwise"),
            evidence: Vec::new(),
            state: state.to_vec(),
        })
    }
}

export_strategy!(Manual);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_and_keeps_a_state_that_it_is_given() {
        let ctx = Context::new("{}");
        let plan = Manual::begin(&ctx, Some(b"before")).unwrap();
        assert_eq!(&*plan.state, b"before");
        let verdict = Manual::evaluate(&ctx, &Observation::default(), &plan.state).unwrap();
        assert_eq!((verdict.action, &*verdict.state), (Action::Hold, &b"before"[..]));
    }

    #[test]
    fn it_begins_where_it_is_told_and_takes_over_where_traffic_is() {
        let ctx = Context::new(r#"{"weight": 12.5}"#);
        assert_eq!(Manual::begin(&ctx, None).unwrap().weight, 1_250);
        let error = Manual::begin(&ctx, Some(b"")).unwrap_err();
        assert!(error.message().contains("mortise rollout weight"), "{error}");
        assert!(Manual::begin(&Context::new(r#"{"weight": 101}"#), None).is_err());
    }
}
