//! Rollouts with a scripted clock and scripted statistics.

use super::*;
use mortise_plugin_sdk::{Moments, Window};

const CONFIG: &str = r#"{"interval": "60s", "check": "10s", "min_samples": 20}"#;

/// What one version does in ten seconds.
#[derive(Clone, Copy)]
struct Behaviour {
    error_rate: f64,
    latency_bucket: usize,
    revenue: f64,
}

const GOOD: Behaviour = Behaviour { error_rate: 0.005, latency_bucket: 20, revenue: 10.0 };

/// Requests in a check, for both versions.
const REQUESTS: f64 = 2_000.0;

/// The same counts each time, with remainders carried over.
#[derive(Default)]
struct Script {
    errors_due: [f64; 2],
}

impl Script {
    fn window(&mut self, side: usize, share: f64, behaviour: Behaviour) -> Window {
        let requests = (REQUESTS * share).round();
        self.errors_due[side] += requests * behaviour.error_rate;
        let errors = self.errors_due[side].floor();
        self.errors_due[side] -= errors;
        let mut latency = vec![0; 90];
        let answered = (requests - errors).max(0.0) as u64;
        latency[behaviour.latency_bucket] = answered / 2;
        latency[behaviour.latency_bucket + 1] = answered - answered / 2;
        // Half of the values one above, half one below the mean.
        let (count, mean) = (requests as u64, behaviour.revenue);
        let moments = Moments {
            name: "revenue".to_owned(),
            count,
            sum: count as f64 * mean,
            sum_of_squares: count as f64 * (mean * mean + 1.0),
        };
        Window { requests: requests as u64, errors: errors as u64, latency, metrics: vec![moments] }
    }
}

/// Runs a rollout to its end, and returns it with the weights on the way and
/// the number of evaluations.
fn rollout(config: &str, candidate: Behaviour) -> (Verdict, Vec<u32>, usize) {
    let ctx = Context::new(config);
    let plan = Canary::begin(&ctx, None).unwrap();
    let (mut weight, mut state) = (plan.weight, plan.state);
    let mut weights = vec![weight];
    let mut script = Script::default();
    for check in 1..1_000 {
        let share = f64::from(weight) / f64::from(config::WHOLE);
        let observed = Observation {
            elapsed_ms: check as u64 * plan.check_every_ms,
            weight,
            stable: script.window(0, 1.0 - share, GOOD),
            candidate: script.window(1, share, candidate),
            findings: Vec::new(),
        };
        let verdict = Canary::evaluate(&ctx, &observed, &state).unwrap();
        state.clone_from(&verdict.state);
        match verdict.action {
            Action::Hold => {}
            Action::SetWeight(next) => {
                weight = next;
                weights.push(next);
            }
            Action::Promote | Action::Rollback => return (verdict, weights, check),
        }
    }
    panic!("the rollout did not end at {weights:?}");
}

#[test]
fn an_equal_candidate_climbs_every_step_and_is_promoted() {
    let (verdict, weights, checks) = rollout(CONFIG, GOOD);
    assert_eq!(verdict.action, Action::Promote, "{}", verdict.reason);
    assert_eq!(weights, [100, 500, 2_500, 5_000]);
    assert_eq!(checks, 24, "four steps of six checks");
}

#[test]
fn a_candidate_that_fails_more_often_is_rolled_back() {
    let (verdict, weights, _) = rollout(CONFIG, Behaviour { error_rate: 0.03, ..GOOD });
    assert_eq!(verdict.action, Action::Rollback);
    assert!(verdict.reason.starts_with("the candidate failed"), "{}", verdict.reason);
    assert!(weights.len() <= 2, "it climbed to {weights:?}");
}

#[test]
fn a_candidate_that_is_three_times_slower_is_rolled_back_at_the_first_step() {
    // Four buckets are a factor of two.
    let (verdict, weights, _) = rollout(CONFIG, Behaviour { latency_bucket: 26, ..GOOD });
    assert_eq!(verdict.action, Action::Rollback);
    assert!(verdict.reason.contains("at the median"), "{}", verdict.reason);
    assert_eq!(weights, [100]);
}

#[test]
fn a_little_slower_is_tolerated() {
    let (verdict, ..) = rollout(CONFIG, Behaviour { latency_bucket: 22, ..GOOD });
    assert_eq!(verdict.action, Action::Promote, "{}", verdict.reason);
}

#[test]
fn a_metric_that_gets_worse_is_a_reason_only_when_it_is_named() {
    let poorer = Behaviour { revenue: 9.8, ..GOOD };
    let named = r#"{"check": "10s", "metrics": {"revenue": "higher"}}"#;
    let (verdict, ..) = rollout(named, poorer);
    assert_eq!(verdict.action, Action::Rollback);
    assert!(verdict.reason.starts_with("revenue is 9.8"), "{}", verdict.reason);
    let welcome = r#"{"check": "10s", "metrics": {"revenue": "lower"}}"#;
    assert_eq!(rollout(welcome, poorer).0.action, Action::Promote);
    assert_eq!(rollout(CONFIG, poorer).0.action, Action::Promote);
}

#[test]
fn without_traffic_it_waits() {
    let ctx = Context::new(CONFIG);
    let plan = Canary::begin(&ctx, None).unwrap();
    let observed = Observation { elapsed_ms: 3_600_000, weight: 100, ..Observation::default() };
    let verdict = Canary::evaluate(&ctx, &observed, &plan.state).unwrap();
    assert_eq!(verdict.action, Action::Hold);
    assert!(verdict.reason.contains("0 of min_samples = 20"), "{}", verdict.reason);
}

#[test]
fn a_critical_finding_rolls_back() {
    let ctx = Context::new(CONFIG);
    let plan = Canary::begin(&ctx, None).unwrap();
    let finding = mortise_plugin_sdk::Finding {
        monitor: "drift".to_owned(),
        severity: Severity::Critical,
        message: "labels are gone".to_owned(),
    };
    let observed = Observation { findings: vec![finding], ..Observation::default() };
    let verdict = Canary::evaluate(&ctx, &observed, &plan.state).unwrap();
    assert_eq!(verdict.action, Action::Rollback);
    assert_eq!(verdict.reason, "monitor drift: labels are gone");
}

#[test]
fn a_state_is_taken_over_and_a_strange_one_is_refused() {
    let ctx = Context::new(CONFIG);
    let plan = Canary::begin(&ctx, None).unwrap();
    assert_eq!(Canary::begin(&ctx, Some(&plan.state)).unwrap(), plan);
    for strange in [&b""[..], b"{}", b"{\"format\": 9}"] {
        assert!(Canary::begin(&ctx, Some(strange)).is_err());
    }
}

#[test]
fn wrong_settings_are_named() {
    let cases = [
        (r#"{"interval": "soon"}"#, "interval must be a time"),
        (r#"{"steps": [50, 5]}"#, "steps must rise"),
        (r#"{"steps": [0]}"#, "above 0"),
        (r#"{"alpha": 2}"#, "alpha"),
        (r#"{"intervall": "1s"}"#, "unknown field `intervall`"),
        (r#"{"metrics": {"x": "up"}}"#, "unknown variant `up`"),
    ];
    for (config, want) in cases {
        let error = Canary::begin(&Context::new(config), None).unwrap_err();
        assert!(error.message().contains(want), "{config}: {error}");
    }
}
