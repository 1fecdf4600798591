use super::*;
use crate::infer::InferCall;
use crate::lineup::Lineup;
use crate::registry::Registry;
use crate::routing::{Router, Routing};
use crate::stage::Stage;
use crate::testing::{custom, inputs, parts, spec};
use crate::variant_stats::ShadowSnapshot;
use crate::{Drain, ServeConfig};
use mortise_host::{Probe, RouteChoice, RouterStats};
use std::sync::mpsc::{Receiver, Sender, channel};

fn named(values: &[f32]) -> Named {
    vec![("y".to_string(), Tensor::from_vec(&[values.len()], values.to_vec()).unwrap())]
}

#[test]
fn differences_are_measured_beyond_rounding() {
    let cases: [(&[f32], &[f32], Option<f64>); 3] = [
        (&[1.0, 2.0], &[1.0, 2.0], None),
        (&[1.0, 2.0], &[1.000_001, 2.0], None),
        (&[1.0, 2.0], &[1.5, 4.0], Some(2.0)),
    ];
    for (ours, theirs, want) in cases {
        assert_eq!(largest_difference(&named(ours), &named(theirs)).unwrap(), want);
    }
    assert!(largest_difference(&named(&[1.0]), &named(&[1.0, 2.0])).is_err());
    assert!(largest_difference(&named(&[1.0]), &Vec::new()).is_err());
}

/// The first version answers, and all others get a copy.
struct MirrorAll;

impl Router for MirrorAll {
    fn probes(&self) -> &[Probe] {
        &[]
    }

    fn route(&self, _key_hash: u64, _seed: u64, _matched: u64) -> Option<RouteChoice> {
        Some(RouteChoice { variant: 0, shadow: !1, is_outside: false })
    }

    fn stats(&self) -> RouterStats {
        RouterStats::default()
    }
}

/// A version that hangs in each run until it is told to go on.
struct Gate {
    entered: Receiver<()>,
    release: Sender<()>,
}

fn gated() -> (Stage, Gate) {
    let (report, entered) = channel();
    let (release, wait) = channel();
    let gate = Mutex::new((report, wait));
    let stage = custom("m", &[spec("x")], &[spec("y")], move |inputs| {
        let gate = gate.lock();
        // A test that is over has nobody left to tell, and waits for nothing.
        let _ = gate.0.send(());
        let _ = gate.1.recv();
        Ok(inputs)
    });
    (stage, Gate { entered, release })
}

fn quick() -> Stage {
    custom("m", &[spec("x")], &[spec("y")], Ok)
}

fn variant(endpoint: &str, number: u64, stage: Stage) -> Variant {
    let revision = Arc::new(Revision::new(parts(endpoint, number, vec![stage])).unwrap());
    Variant::new(&format!("v{number}"), revision, 0)
}

fn publish(registry: &Registry, endpoint: &str, variants: &[Variant]) -> Vec<Drain> {
    let routing = Routing::new(Box::new(MirrorAll), None, Arc::default());
    let lineup = Lineup::new(variants.to_vec(), 0, Some(routing)).unwrap();
    registry.publish_lineup(endpoint, lineup)
}

async fn ask(registry: &Registry, endpoint: &str) {
    let inputs = inputs(&[("x", &[1.0])]);
    registry.infer(InferCall { endpoint, inputs, ..InferCall::default() }).await.unwrap();
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < patience, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

fn shadow(variant: &Variant) -> ShadowSnapshot {
    variant.stats.snapshot().shadow
}

#[tokio::test]
async fn a_shadow_that_hangs_holds_up_its_own_copies_alone() {
    let registry = Registry::new(ServeConfig::default()).unwrap();
    let (stage, gate) = gated();
    let (hanging, beside) = (variant("a", 2, stage), variant("a", 3, quick()));
    publish(&registry, "a", &[variant("a", 1, quick()), hanging.clone(), beside.clone()]);
    let other = variant("b", 2, quick());
    publish(&registry, "b", &[variant("b", 1, quick()), other.clone()]);

    ask(&registry, "a").await;
    gate.entered.recv().unwrap();
    for sent in 1..=MAX_WAITING as u64 + 5 {
        ask(&registry, "a").await;
        ask(&registry, "b").await;
        until("the copies of the others have run", || {
            shadow(&beside).compared == sent + 1 && shadow(&other).compared == sent
        });
    }
    assert_eq!((shadow(&beside).dropped, shadow(&other).dropped), (0, 0));
    assert_eq!((shadow(&hanging).compared, shadow(&hanging).dropped), (0, 5), "its queue is full");
    let waiting = MAX_WAITING as u64 + 1;
    (0..waiting).for_each(|_| gate.release.send(()).unwrap());
    until("all copies have run", || shadow(&hanging).compared == waiting);
    until("nothing is held any more", || registry.shadows.bytes.used() == 0);
}

#[tokio::test]
async fn copies_for_a_version_that_was_replaced_are_not_run() {
    let registry = Registry::new(ServeConfig::default()).unwrap();
    let (stage, gate) = gated();
    let (stable, hanging) = (variant("a", 1, quick()), variant("a", 2, stage));
    publish(&registry, "a", &[stable.clone(), hanging.clone()]);
    for _ in 0..10 {
        ask(&registry, "a").await;
    }
    gate.entered.recv().unwrap();
    let drains = publish(&registry, "a", &[stable]);
    let stats = hanging.stats.clone();
    drop(hanging);
    gate.release.send(()).unwrap();
    until("the version is let go", || drains.iter().all(Drain::is_done));
    let seen = stats.snapshot().shadow;
    assert_eq!((drains.len(), seen.compared, seen.dropped), (1, 1, 9));
}

#[test]
fn a_thread_ends_when_no_copies_come_and_another_begins() {
    let shadows = Shadows { linger: Duration::from_millis(1), ..Shadows::new(|| {}) };
    let variant = variant("a", 2, quick());
    let inputs = inputs(&[("x", &[1.0])]);
    assert_eq!(shadows.workers.used(), 0, "none before the first copy");
    for sent in 1..=3 {
        shadows.mirror(&variant, &inputs, &named(&[1.0]));
        until("the copy has run", || shadow(&variant).compared == sent);
        until("the thread has ended", || shadows.workers.used() == 0);
    }
    assert_eq!(shadow(&variant).dropped, 0);
}

#[test]
fn copies_beyond_the_bounds_are_dropped_and_counted() {
    let without = |workers, bytes| Shadows {
        workers: Budget::new(workers),
        bytes: Budget::new(bytes),
        ..Shadows::new(|| {})
    };
    let inputs = inputs(&[("x", &[1.0])]);
    // The input and the reply hold 4 bytes each.
    for (shadows, dropped) in [(without(0, 8), 1), (without(1, 7), 1), (without(1, 8), 0)] {
        let variant = variant("a", 2, quick());
        shadows.mirror(&variant, &inputs, &named(&[1.0]));
        assert_eq!(shadow(&variant).dropped, dropped);
        until("nothing is held any more", || shadows.bytes.used() == 0);
    }
}
