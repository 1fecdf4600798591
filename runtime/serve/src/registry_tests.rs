use super::*;
use crate::infer::{InferAnswer, InferCall};
use crate::testing::{custom, direct, inputs, parts, spec};
use mortise_types::{ErrorKind, Tensor};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

fn registry(max_endpoint_requests: usize) -> Arc<Registry> {
    let config = ServeConfig {
        compute_threads: 2,
        plugin_threads: 2,
        max_endpoint_requests,
        ..ServeConfig::default()
    };
    Registry::new(config).unwrap()
}

fn call(endpoint: &str) -> InferCall<'_> {
    let inputs = inputs(&[("x", &[1.0])]);
    InferCall { endpoint, inputs, ..InferCall::default() }
}

fn values(answer: &InferAnswer) -> Vec<f32> {
    answer.outputs.iter().flat_map(|(_, out)| out.as_slice::<f32>().unwrap().to_vec()).collect()
}

/// Answers with its own number from both stages.
fn numbered(number: u64) -> Arc<Revision> {
    let constant = move |_| Ok(vec![Tensor::from_vec(&[1], vec![number as f32])?]);
    let transform = direct("t", &[spec("x")], &[spec("y")], constant);
    let model = direct("m", &[spec("y")], &[spec("from_t"), spec("from_m")], move |inputs| {
        Ok(vec![inputs[0].clone(), Tensor::from_vec(&[1], vec![number as f32])?])
    });
    Arc::new(Revision::new(parts("m", number, vec![transform, model])).unwrap())
}

/// A plugin that runs until the test lets it go, one token a call.
struct Gate {
    entered: Receiver<()>,
    release: Sender<()>,
    run_count: Arc<AtomicUsize>,
}

fn gated(endpoint: &str) -> (Arc<Revision>, Gate) {
    let (report, entered) = channel();
    let (release, wait) = channel();
    let run_count = Arc::new(AtomicUsize::new(0));
    let (count, gate) = (run_count.clone(), Mutex::new((report, wait)));
    let stage = custom("slow", &[spec("x")], &[spec("z")], move |inputs| {
        count.fetch_add(1, Ordering::SeqCst);
        let gate = gate.lock();
        gate.0.send(()).unwrap();
        gate.1.recv().unwrap();
        Ok(inputs)
    });
    let revision = Arc::new(Revision::new(parts(endpoint, 1, vec![stage])).unwrap());
    (revision, Gate { entered, release, run_count })
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < patience, "waited in vain until {what}");
        tokio::task::yield_now().await;
    }
}

fn spawn(
    registry: &Arc<Registry>,
    name: &'static str,
) -> tokio::task::JoinHandle<Result<InferAnswer>> {
    let registry = registry.clone();
    tokio::spawn(async move { registry.infer(call(name)).await })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn swaps_lose_no_request_and_mix_no_versions() {
    let registry = registry(512);
    registry.publish("m", numbered(1));
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (registry, stop) = (registry.clone(), stop.clone());
            tokio::spawn(async move {
                let mut answered = 0;
                // Some after the last swap too, however the threads are scheduled.
                while answered < 100 || !stop.load(Ordering::Relaxed) {
                    let answer = registry.infer(call("m")).await.unwrap();
                    let number = answer.revision.number() as f32;
                    assert_eq!(values(&answer), [number, number]);
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    let mut drains = Vec::new();
    for number in 2..=400 {
        drains.extend(registry.publish("m", numbered(number)));
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() >= 100);
    }
    assert_eq!(drains.len(), 399);
    until("every old revision is gone", || drains.iter().all(Drain::is_done)).await;
    assert_eq!(registry.draining(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_endpoint_refuses_and_recovers() {
    let registry = registry(2);
    let (revision, gate) = gated("slow");
    registry.publish("slow", revision);
    let running = spawn(&registry, "slow");
    gate.entered.recv().unwrap();
    let waiting = spawn(&registry, "slow");
    let endpoint = registry.endpoint("slow").unwrap();
    until("two are in flight", || endpoint.stats().in_flight == 2).await;
    let refused = registry.infer(call("slow")).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    gate.release.send(()).unwrap();
    gate.release.send(()).unwrap();
    assert!(running.await.unwrap().is_ok() && waiting.await.unwrap().is_ok());
    assert_eq!(endpoint.stats().in_flight, 0);
    assert_eq!(endpoint.stats().failures, [(ErrorKind::Overloaded, 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_work_makes_room_and_is_never_run() {
    let registry = registry(2);
    let (revision, gate) = gated("slow");
    registry.publish("slow", revision);
    let running = spawn(&registry, "slow");
    gate.entered.recv().unwrap();
    let endpoint = registry.endpoint("slow").unwrap();
    let abandoned = spawn(&registry, "slow");
    until("two are in flight", || endpoint.stats().in_flight == 2).await;
    abandoned.abort();
    assert!(abandoned.await.is_err());
    let next = spawn(&registry, "slow");
    gate.release.send(()).unwrap();
    gate.release.send(()).unwrap();
    assert!(running.await.unwrap().is_ok() && next.await.unwrap().is_ok());
    assert_eq!(gate.run_count.load(Ordering::SeqCst), 2);
    assert_eq!(endpoint.stats().cancelled, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_work_is_never_run() {
    let registry = registry(8);
    let (revision, gate) = gated("slow");
    registry.publish("slow", revision);
    let running = spawn(&registry, "slow");
    gate.entered.recv().unwrap();
    let late = InferCall { deadline: Some(Instant::now()), ..call("slow") };
    let error = registry.infer(late).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Deadline);
    gate.release.send(()).unwrap();
    assert!(running.await.unwrap().is_ok());
    let endpoint = registry.endpoint("slow").unwrap();
    until("the queue is empty", || endpoint.stats().in_flight == 0).await;
    assert_eq!(gate.run_count.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_endpoint_never_holds_every_plugin_thread() {
    let registry = registry(64);
    let (revision, gate) = gated("slow");
    registry.publish("slow", revision);
    let quick = custom("quick", &[spec("x")], &[spec("z")], Ok);
    registry.publish("quick", Arc::new(Revision::new(parts("quick", 1, vec![quick])).unwrap()));
    let slow: Vec<_> = (0..10).map(|_| spawn(&registry, "slow")).collect();
    gate.entered.recv().unwrap();
    for _ in 0..20 {
        assert!(registry.infer(call("quick")).await.is_ok());
    }
    (0..10).for_each(|_| gate.release.send(()).unwrap());
    for task in slow {
        assert!(task.await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn requests_for_what_is_not_there_are_told_why() {
    let registry = registry(8);
    registry.publish("m", numbered(3));
    registry.withdraw("away", "it was unloaded");
    let versioned = |version| InferCall { version: Some(version), ..call("m") };
    let wants = |outputs: &[&str]| InferCall {
        outputs: Some(outputs.iter().map(|name| name.to_string()).collect()),
        ..call("m")
    };
    let cases = [
        (call("none"), ErrorKind::NotFound, "unknown model \"none\""),
        (versioned("2"), ErrorKind::NotFound, "no version \"2\"; version 3 is live"),
        (versioned("x"), ErrorKind::NotFound, "no version \"x\""),
        (call("away"), ErrorKind::NotReady, "it was unloaded"),
        (wants(&["q"]), ErrorKind::InvalidInput, "unknown output \"q\""),
    ];
    for (call, kind, message) in cases {
        let error = registry.infer(call).await.err().unwrap();
        assert_eq!(error.kind(), kind);
        assert!(error.message().contains(message), "{error}");
    }
    let answer = registry.infer(wants(&["from_m"])).await.unwrap();
    assert_eq!(answer.outputs.len(), 1);
    assert!(registry.infer(versioned("3")).await.is_ok());
    registry.remove("m");
    assert_eq!(registry.infer(call("m")).await.err().unwrap().kind(), ErrorKind::NotFound);
}
