//! Merging, sequences, the cache and limits, through [`Registry::infer`].

use super::*;
use crate::infer::{InferAnswer, InferCall, SequenceId, SequenceStep};
use crate::options::{
    BatchOptions, CacheOptions, Rate, RateLimits, SequenceOptions, ServingOptions, StateTie,
};
use crate::revision::RevisionParts;
use crate::stage::{CustomStage, Stage, StageRun};
use crate::testing::{custom, direct, inputs, parts, spec};
use mortise_host::{PluginHealth, PluginStats};
use mortise_types::{CutShort, ErrorKind, RunControl, Tensor};
use std::sync::atomic::AtomicUsize;

/// Runs slow enough never to stay on the thread that received the request.
const SLOW: Duration = Duration::from_millis(4);

fn registry() -> Arc<Registry> {
    Registry::new(ServeConfig { compute_threads: 2, ..ServeConfig::default() }).unwrap()
}

fn publish(registry: &Registry, stage: Stage, options: ServingOptions) -> Arc<Revision> {
    let parts = RevisionParts { options, ..parts("m", 1, vec![stage]) };
    let revision = Arc::new(Revision::new(parts).unwrap());
    revision.allow_merging();
    registry.publish("m", revision.clone());
    revision
}

/// Doubles its rows, slowly. A row of 13 is more than it can take.
fn slow_double() -> Stage {
    direct("m", &[spec("x")], &[spec("y")], |inputs| {
        std::thread::sleep(SLOW);
        let rows = inputs[0].as_slice::<f32>()?;
        if rows.contains(&13.0) {
            return Err(Error::invalid("13 is bad luck"));
        }
        let doubled = rows.iter().map(|value| value * 2.0).collect();
        Ok(vec![Tensor::from_vec(&[rows.len()], doubled)?])
    })
}

fn call(values: &[f32]) -> InferCall<'static> {
    InferCall { endpoint: "m", inputs: inputs(&[("x", values)]), ..InferCall::default() }
}

fn values(answer: &InferAnswer) -> Vec<f32> {
    answer.outputs.iter().flat_map(|(_, out)| out.as_slice::<f32>().unwrap().to_vec()).collect()
}

fn one_instance() -> ServingOptions {
    // A size that is given is not adapted.
    let batching =
        BatchOptions { instances: Some(1), max_batch_size: Some(64), ..BatchOptions::default() };
    ServingOptions { batching, ..ServingOptions::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_come_while_the_device_is_busy_run_together() {
    let registry = registry();
    let revision = publish(&registry, slow_double(), one_instance());
    let tasks: Vec<_> = (0..24)
        .map(|index| {
            let registry = registry.clone();
            tokio::spawn(async move {
                let row = [100.0 + index as f32, 200.0 + index as f32];
                (row, registry.infer(call(&row[..1 + index % 2])).await)
            })
        })
        .collect();
    for task in tasks {
        let (row, answer) = task.await.unwrap();
        let got = values(&answer.unwrap());
        assert_eq!(got, row[..got.len()].iter().map(|value| value * 2.0).collect::<Vec<_>>());
    }
    let stats = revision.stats_snapshot();
    assert_eq!((stats.success.count, stats.inference_count), (24, 36));
    assert!(stats.execution_count <= 12, "{stats:?}");
    assert!(stats.batches.last().is_some_and(|batch| batch.batch_size > 4), "{stats:?}");
    assert_eq!(stats.queued_requests, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_guilty_member_of_a_batch_fails() {
    let registry = registry();
    let revision = publish(&registry, slow_double(), one_instance());
    let tasks: Vec<_> = (0..16)
        .map(|index| {
            let registry = registry.clone();
            tokio::spawn(async move { (index, registry.infer(call(&[index as f32])).await) })
        })
        .collect();
    for task in tasks {
        match task.await.unwrap() {
            (13, answer) => assert_eq!(answer.err().unwrap().kind(), ErrorKind::InvalidInput),
            (index, answer) => assert_eq!(values(&answer.unwrap()), [index as f32 * 2.0]),
        }
    }
    let stats = revision.stats_snapshot();
    assert_eq!((stats.success.count, stats.fail.count), (15, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_holds_while_a_request_waits() {
    let registry = registry();
    let options = BatchOptions { merge: false, instances: Some(1), ..BatchOptions::default() };
    let options = ServingOptions { batching: options, ..ServingOptions::default() };
    let stage = direct("m", &[spec("x")], &[spec("y")], |inputs| {
        std::thread::sleep(Duration::from_millis(100));
        Ok(inputs)
    });
    let revision = publish(&registry, stage, options);
    let first = {
        let registry = registry.clone();
        tokio::spawn(async move { registry.infer(call(&[1.0])).await })
    };
    while revision.batcher.waiting_count() > 0 || Arc::strong_count(&revision) < 4 {
        tokio::task::yield_now().await;
    }
    let hasty = InferCall { timeout: Some(Duration::from_millis(10)), ..call(&[2.0]) };
    let error = registry.infer(hasty).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Deadline);
    assert!(first.await.unwrap().is_ok());
    assert_eq!(revision.stats_snapshot().execution_count, 1);
}

/// The running sum of a sequence, and how often it ran.
fn running_sum() -> Stage {
    direct("m", &[spec("x"), spec("h")], &[spec("y"), spec("h2")], |inputs| {
        let (x, h) = (inputs[0].as_slice::<f32>()?, inputs[1].as_slice::<f32>()?);
        let sum: Vec<f32> = x.iter().zip(h).map(|(x, h)| x + h).collect();
        let sum = Tensor::from_vec(&[sum.len()], sum)?;
        Ok(vec![sum.clone(), sum])
    })
}

fn stateful(idle_timeout: Duration) -> ServingOptions {
    let tie = StateTie { input: "h".to_string(), output: "h2".to_string(), initial_shape: None };
    let sequence = SequenceOptions { state: vec![tie], idle_timeout, max_sequences: 2 };
    ServingOptions { sequence, ..ServingOptions::default() }
}

fn step(id: u64, value: f32, start: bool, end: bool) -> InferCall<'static> {
    let sequence = SequenceStep { id: SequenceId::Number(id), start, end };
    InferCall { sequence: Some(sequence), ..call(&[value]) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequences_keep_their_state_and_their_revision() {
    let registry = registry();
    let first = publish(&registry, running_sum(), stateful(Duration::from_secs(60)));
    assert_eq!(first.signature().inputs.len(), 1, "clients do not see the state");
    let ask = async |call| registry.infer(call).await.map(|answer| (values(&answer), answer));
    assert_eq!(ask(step(1, 1.0, true, false)).await.unwrap().0, [1.0]);
    assert_eq!(ask(step(2, 10.0, true, false)).await.unwrap().0, [10.0]);
    let full = ask(step(3, 0.0, true, false)).await.err().unwrap();
    assert_eq!(full.kind(), ErrorKind::Overloaded);
    let second = publish(&registry, running_sum(), stateful(Duration::from_secs(60)));
    let (sum, answer) = ask(step(1, 2.0, false, false)).await.unwrap();
    assert_eq!(sum, [3.0]);
    assert!(Arc::ptr_eq(&answer.revision, &first), "a sequence keeps its revision");
    let (sum, answer) = ask(step(2, 20.0, true, false)).await.unwrap();
    assert_eq!(sum, [20.0], "a start begins anew");
    assert!(Arc::ptr_eq(&answer.revision, &second));
    assert_eq!(ask(step(1, 3.0, false, true)).await.unwrap().0, [6.0]);
    let ended = ask(step(1, 4.0, false, false)).await.err().unwrap();
    assert!(ended.message().contains("no open sequence 1"), "{ended}");
    let without = ask(call(&[1.0])).await.err().unwrap();
    assert!(without.message().contains("sequence_id"), "{without}");
}

#[tokio::test]
async fn silent_sequences_end() {
    let registry = registry();
    publish(&registry, running_sum(), stateful(Duration::from_millis(20)));
    registry.infer(step(1, 1.0, true, false)).await.unwrap();
    let endpoint = registry.endpoint("m").unwrap();
    let patience = std::time::Instant::now() + Duration::from_secs(20);
    while endpoint.open_sequences() > 0 {
        assert!(std::time::Instant::now() < patience, "it stays open");
        tokio::task::yield_now().await;
    }
    assert!(registry.infer(step(1, 1.0, false, false)).await.is_err());
}

#[tokio::test]
async fn equal_requests_are_answered_from_the_cache() {
    let registry = registry();
    let runs = Arc::new(AtomicUsize::new(0));
    let count = runs.clone();
    let stage = direct("m", &[spec("x")], &[spec("y")], move |inputs| {
        count.fetch_add(1, Ordering::Relaxed);
        Ok(inputs)
    });
    let cache = Some(CacheOptions { max_bytes: 1 << 20 });
    let revision = publish(&registry, stage, ServingOptions { cache, ..Default::default() });
    for value in [1.0, 2.0, 1.0, 1.0] {
        assert_eq!(values(&registry.infer(call(&[value])).await.unwrap()), [value]);
    }
    assert_eq!(runs.load(Ordering::Relaxed), 2);
    let stats = revision.stats_snapshot();
    assert_eq!((stats.cache_hit.count, stats.cache_miss.count), (2, 2));
    assert_eq!((stats.success.count, stats.execution_count), (4, 2));
}

#[tokio::test]
async fn rates_are_limited_for_each_client() {
    let registry = registry();
    let client = Some(Rate { requests_per_second: 0.001, burst: 2.0 });
    let rate_limits = RateLimits { endpoint: None, client };
    let stage = direct("m", &[spec("x")], &[spec("y")], Ok);
    publish(&registry, stage, ServingOptions { rate_limits, ..Default::default() });
    let by = |key| InferCall { client_key: Some(key), ..call(&[1.0]) };
    assert!(registry.infer(by("a")).await.is_ok() && registry.infer(by("a")).await.is_ok());
    let refused = registry.infer(by("a")).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::RateLimited);
    assert!(refused.retry_after().is_some());
    assert!(registry.infer(by("b")).await.is_ok());
}

/// A plugin that says which thread entered it. Where it must be brief, 13 takes
/// too long and 14 finds it busy; what it gives then is wrong.
struct Whereabouts;

impl CustomStage for Whereabouts {
    fn call(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Vec<Tensor>> {
        let value = inputs[0].as_slice::<f32>()?[0];
        let cut = match value {
            13.0 => Some(CutShort::TooLong),
            14.0 => Some(CutShort::Busy),
            _ => None,
        };
        cut.filter(|_| control.is_brief()).into_iter().for_each(|cut| control.cut_short(cut));
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        let is_plugin_thread = f32::from(u8::from(thread.starts_with("mortise-plugin")));
        Ok(vec![Tensor::from_vec(&[2], vec![value, is_plugin_thread])?])
    }

    fn can_be_brief(&self) -> bool {
        true
    }

    fn health(&self) -> PluginHealth {
        PluginHealth::Ready
    }

    fn stats(&self) -> PluginStats {
        PluginStats::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_plugins_run_where_requests_arrive_and_slow_calls_begin_again_elsewhere() {
    let registry = registry();
    let plugin = custom("m", &[spec("x")], &[spec("y")], |_| unreachable!());
    let plugin = Stage { run: StageRun::Custom(Arc::new(Whereabouts)), ..plugin };
    let revision = publish(&registry, plugin, ServingOptions::default());
    let ask = async |value: f32| values(&registry.infer(call(&[value])).await.unwrap());
    assert_eq!(ask(1.0).await, [1.0, 1.0], "nothing is known of it yet");
    assert_eq!(ask(2.0).await, [2.0, 0.0]);
    assert_eq!(ask(14.0).await, [14.0, 1.0]);
    assert_eq!(ask(3.0).await, [3.0, 0.0], "being busy has no consequence");
    assert_eq!(ask(13.0).await, [13.0, 1.0]);
    assert_eq!(ask(4.0).await, [4.0, 1.0], "it is not trusted for a while");
    let stats = revision.stats_snapshot();
    assert_eq!((stats.success.count, stats.inference_count), (6, 6));
    let endpoint = registry.endpoint("m").unwrap();
    assert_eq!(endpoint.stats().in_flight, 0);
}

#[tokio::test]
async fn where_others_wait_for_the_thread_only_very_short_runs_stay_on_it() {
    let in_place_below = Duration::from_millis(800);
    let config = ServeConfig { in_place_below, compute_threads: 2, ..ServeConfig::default() };
    let registry = Registry::new(config).unwrap();
    let ran_on = Arc::new(Mutex::new(std::thread::current().id()));
    let noted = ran_on.clone();
    let stage = direct("m", &[spec("x")], &[spec("y")], move |inputs| {
        *noted.lock() = std::thread::current().id();
        std::thread::sleep(Duration::from_millis(220));
        Ok(inputs)
    });
    publish(&registry, stage, ServingOptions::default());
    let here = std::thread::current().id();
    // Nothing is known of its time yet.
    registry.infer(call(&[1.0])).await.unwrap();
    assert_ne!(*ran_on.lock(), here);
    registry.infer(call(&[1.0])).await.unwrap();
    assert_eq!(*ran_on.lock(), here);
    registry.infer(InferCall { is_crowded: true, ..call(&[1.0]) }).await.unwrap();
    assert_ne!(*ran_on.lock(), here);
}
