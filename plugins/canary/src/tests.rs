//! Rollouts with a scripted clock and scripted statistics.

use super::*;
use mortise_plugin_sdk::Window;
use mortise_plugin_sdk::testing::{Behaviour, Run, Script};

const CONFIG: &str = r#"{"interval": "60s", "check": "10s", "min_samples": 20}"#;

fn good() -> Behaviour {
    let metrics = vec![("revenue".to_owned(), 10.0)];
    Behaviour { error_rate: 0.005, latency_us: 320.0, metrics }
}

/// A rollout to its end, beside a good stable version.
fn rollout(config: &str, candidate: Behaviour) -> Run {
    let script = Script::new(good()).candidate(move |_| candidate.clone());
    script.run::<Canary>(config)
}

#[test]
fn an_equal_candidate_climbs_every_step_and_is_promoted() {
    let run = rollout(CONFIG, good());
    assert_eq!(run.end(), Some(Action::Promote), "{}", run.reason());
    assert_eq!(run.weights, [100, 500, 2_500, 5_000]);
    assert_eq!(run.checks, 24, "four steps of six checks");
}

#[test]
fn a_candidate_that_fails_more_often_is_rolled_back() {
    let run = rollout(CONFIG, Behaviour { error_rate: 0.03, ..good() });
    assert_eq!(run.end(), Some(Action::Rollback));
    assert!(run.reason().starts_with("the candidate failed"), "{}", run.reason());
    assert!(run.weights.len() <= 2, "it climbed to {:?}", run.weights);
}

#[test]
fn a_candidate_that_breaks_halfway_is_rolled_back_from_there() {
    let breaks = |elapsed_ms| match elapsed_ms {
        ..=150_000 => good(),
        _ => Behaviour { error_rate: 0.2, ..good() },
    };
    let run = Script::new(good()).candidate(breaks).run::<Canary>(CONFIG);
    assert_eq!(run.end(), Some(Action::Rollback), "{}", run.reason());
    assert_eq!((run.weights.as_slice(), run.elapsed_ms), (&[100, 500, 2_500][..], 160_000));
}

#[test]
fn a_bad_day_of_both_versions_is_no_fault_of_the_candidate() {
    let day = |elapsed_ms| match elapsed_ms {
        60_000..=120_000 => Behaviour { error_rate: 0.3, latency_us: 5_000.0, ..good() },
        _ => good(),
    };
    let run = Script::new(good()).stable(day).candidate(day).run::<Canary>(CONFIG);
    assert_eq!(run.end(), Some(Action::Promote), "{}", run.reason());
}

#[test]
fn a_candidate_that_is_three_times_slower_is_rolled_back_at_the_first_step() {
    let run = rollout(CONFIG, Behaviour { latency_us: 960.0, ..good() });
    assert_eq!(run.end(), Some(Action::Rollback));
    assert!(run.reason().contains("at the median"), "{}", run.reason());
    assert_eq!(run.weights, [100]);
}

#[test]
fn a_little_slower_is_tolerated() {
    let run = rollout(CONFIG, Behaviour { latency_us: 450.0, ..good() });
    assert_eq!(run.end(), Some(Action::Promote), "{}", run.reason());
}

#[test]
fn a_metric_that_gets_worse_is_a_reason_only_when_it_is_named() {
    let poorer = Behaviour { metrics: vec![("revenue".to_owned(), 9.8)], ..good() };
    let named = r#"{"check": "10s", "metrics": {"revenue": "higher"}}"#;
    let run = rollout(named, poorer.clone());
    assert_eq!(run.end(), Some(Action::Rollback));
    assert!(run.reason().starts_with("revenue is 9.8"), "{}", run.reason());
    let welcome = r#"{"check": "10s", "metrics": {"revenue": "lower"}}"#;
    assert_eq!(rollout(welcome, poorer.clone()).end(), Some(Action::Promote));
    assert_eq!(rollout(CONFIG, poorer).end(), Some(Action::Promote));
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
    let finding = mortise_plugin_sdk::Finding {
        monitor: "drift".to_owned(),
        severity: Severity::Critical,
        message: "labels are gone".to_owned(),
    };
    let run = Script::new(good()).finding(25_000, finding).run::<Canary>(CONFIG);
    assert_eq!((run.end(), run.elapsed_ms), (Some(Action::Rollback), 30_000));
    assert_eq!(run.reason(), "monitor drift: labels are gone");
}

#[test]
fn a_state_is_taken_over_and_a_strange_one_is_refused() {
    let ctx = Context::new(CONFIG);
    let plan = Canary::begin(&ctx, None).unwrap();
    assert_eq!(Canary::begin(&ctx, Some(&plan.state)).unwrap(), plan);
    for strange in [&b"{}"[..], b"{\"format\": 9}", b"no JSON"] {
        assert!(Canary::begin(&ctx, Some(strange)).is_err());
    }
}

/// What the canary makes of a good candidate that was looked at once before, at
/// this time and share.
fn next_step(state: &[u8], weight: u32) -> (Action, Action) {
    let ctx = Context::new(CONFIG);
    let look = |elapsed_ms: u64, state: &[u8]| {
        let window = Window { requests: 40 * u64::from(weight > 0), ..Window::default() };
        let (stable, candidate) = (window.clone(), window);
        let observed =
            Observation { elapsed_ms, weight, stable, candidate, ..Observation::default() };
        Canary::evaluate(&ctx, &observed, state).unwrap()
    };
    let first = look(3_600_000, state);
    (first.action, look(3_660_000, &first.state).action)
}

#[test]
fn a_rollout_of_another_strategy_goes_on_from_its_share() {
    let plan = Canary::begin(&Context::new(CONFIG), Some(b"")).unwrap();
    let cases = [
        (0, Action::SetWeight(100)),
        (1_000, Action::SetWeight(2_500)),
        (2_500, Action::SetWeight(5_000)),
        (6_000, Action::Promote),
    ];
    for (weight, want) in cases {
        assert_eq!(next_step(&plan.state, weight), (Action::Hold, want), "from {weight}");
    }
}

#[test]
fn a_share_that_an_operator_set_is_a_step_of_its_own() {
    let plan = Canary::begin(&Context::new(CONFIG), None).unwrap();
    assert_eq!(next_step(&plan.state, 4_000), (Action::Hold, Action::SetWeight(5_000)));
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
