//! Services that are told about the steps of rollouts, and asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::rollouts::{LIMIT, ended, live_version, manual, model, traffic};
use anyhow::{Context, Result, ensure};
use mortise_tests::admin::{Part, Rollout};
use mortise_tests::{Admin, Server, wait};
use serde_json::{Value, json};

/// What the service says to a step that it does not agree to.
const REFUSAL: &str = "no changes until Monday";

/// A service that is told about steps, and agrees to some.
pub(crate) struct HookService {
    pub(crate) url: String,
    /// Actions that it agrees to.
    agreed: Arc<Mutex<Vec<&'static str>>>,
    events: Arc<Mutex<Vec<Value>>>,
}

impl HookService {
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/hook", listener.local_addr()?);
        let service = Self { url, agreed: Arc::default(), events: Arc::default() };
        let (agreed, events) = (service.agreed.clone(), service.events.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that breaks off asks again.
                let _ = answer_hook(stream, &agreed, &events);
            }
        });
        Ok(service)
    }

    fn agree_to(&self, action: &'static str) {
        self.agreed.lock().unwrap_or_else(PoisonError::into_inner).push(action);
    }

    /// What was done to whom, of all events of this kind.
    fn actions(&self, event: &str) -> Vec<String> {
        self.events(event).iter().filter_map(|it| Some(it["action"].as_str()?.to_owned())).collect()
    }

    pub(crate) fn events(&self, event: &str) -> Vec<Value> {
        let all = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|it| it["event"] == event).cloned().collect()
    }
}

fn answer_hook(
    stream: TcpStream,
    agreed: &Mutex<Vec<&'static str>>,
    events: &Mutex<Vec<Value>>,
) -> Result<()> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim().to_ascii_lowercase().split_once(':') {
            Some(("content-length", value)) => length = value.trim().parse()?,
            Some(_) => {}
            None if line.trim().is_empty() => break,
            None => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let event: Value = serde_json::from_slice(&body)?;
    let agreed = agreed.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let agrees = agreed.iter().any(|action| event["action"] == *action);
    events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    let (status, text) = if agrees { ("200 OK", "") } else { ("403 Forbidden", REFUSAL) };
    let length = text.len();
    let answer =
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}");
    Ok(reader.into_inner().write_all(answer.as_bytes())?)
}

fn quick_canary() -> Part {
    Part::builtin("canary")
        .set("interval", "0.2s")
        .set("check", "100ms")
        .set("min_samples", 5)
        .set("steps", json!([50, 100]))
        .set("latency_tolerance", 1_000)
}

fn told(hook: &HookService, confirm: bool, strategy: Part) -> Rollout {
    let hook = Some(json!({"url": hook.url, "confirm": confirm}));
    Rollout { hook, ..Rollout::of(strategy) }
}

/// Waits until the service refused a step, and returns the rollout as it is then.
fn refused(admin: &mut Admin, action: &str) -> Result<Value> {
    let text = format!("does not agree to {action}: it answered with status 403: {REFUSAL}");
    wait::until("the step to be refused", LIMIT, || {
        Ok(admin.rollout("sum")?["error"].as_str().is_some_and(|error| error.contains(&text)))
    })?;
    admin.rollout("sum")
}

#[test]
fn a_hook_that_is_asked_can_hold_each_step_back() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0, 0.0, 0))?;
    let hook = HookService::start()?;
    admin.deploy("sum", &model(2.0, 0.0, 0).rollout(told(&hook, true, quick_canary())))?;
    let load = traffic(&server);
    let held = refused(&mut admin, "begin")?;
    assert_eq!((&held["phase"], &held["weight_percent"]), (&json!("running"), &json!(0.0)));
    assert_eq!(hook.events("after_step").len(), 0, "a step was taken without consent");
    hook.agree_to("begin");
    let held = refused(&mut admin, "promote")?;
    assert_eq!((&held["phase"], &held["weight_percent"]), (&json!("running"), &json!(50.0)));
    assert_eq!(hook.actions("after_step"), ["begin"]);
    hook.agree_to("promote");
    let end = ended(&mut admin)?;
    load.finish()?;
    assert_eq!((&end["phase"], &end["error"]), (&json!("promoted"), &Value::Null), "{end}");
    wait::until("the hook to be told", LIMIT, || Ok(hook.events("after_step").len() > 1))?;
    let last = hook.events("after_step").pop().context("no event")?;
    assert_eq!((&last["endpoint"], &last["action"]), (&json!("sum"), &json!("promote")), "{last}");
    Ok(())
}

#[test]
fn what_an_operator_does_is_asked_about_too_and_steps_back_are_not() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0, 0.0, 0))?;
    let hook = HookService::start()?;
    hook.agree_to("begin");
    admin.deploy("sum", &model(2.0, 0.0, 0).rollout(told(&hook, true, manual(20.0).strategy)))?;
    wait::until("the beginning", LIMIT, || Ok(admin.rollout("sum")?["weight_percent"] == 20.0))?;
    for (action, body) in [("weight", json!({"percent": 60})), ("promote", Value::Null)] {
        let error = format!("{:#}", admin.steer_rollout("sum", action, &body).unwrap_err());
        ensure!(error.contains(REFUSAL) && error.contains("--force"), "{error}");
        assert_eq!(admin.rollout("sum")?["weight_percent"], 20.0);
    }
    let less = admin.steer_rollout("sum", "weight", &json!({"percent": 10}))?;
    assert_eq!(less["weight_percent"], 10.0);
    let forced = json!({"percent": 60, "force": true});
    assert_eq!(admin.steer_rollout("sum", "weight", &forced)?["weight_percent"], 60.0);
    admin.steer_rollout("sum", "promote", &json!({"force": true}))?;
    assert_eq!(live_version(&mut admin)?, 2);
    let all = ["begin", "set_weight", "set_weight", "promote"];
    wait::until("the hook to be told", LIMIT, || Ok(hook.actions("after_step") == all))?;
    Ok(())
}

#[test]
fn a_hook_is_told_before_and_after_each_step_and_missed_when_it_is_gone() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0, 0.0, 0))?;
    let hook = HookService::start()?;
    ["begin", "set_weight", "rollback"].into_iter().for_each(|action| hook.agree_to(action));
    admin.deploy("sum", &model(2.0, 0.0, 0).rollout(told(&hook, false, manual(20.0).strategy)))?;
    admin.steer_rollout("sum", "weight", &json!({"percent": 40}))?;
    admin.steer_rollout("sum", "abort", &Value::Null)?;
    let all = ["begin", "set_weight", "rollback"];
    wait::until("the hook to be told", LIMIT, || Ok(hook.actions("after_step") == all))?;
    assert_eq!(hook.actions("before_step"), all);
    let shares: Vec<(f64, f64)> = hook
        .events("before_step")
        .iter()
        .filter_map(|it| {
            Some((it["weight_percent"].as_f64()?, it["next_weight_percent"].as_f64()?))
        })
        .collect();
    assert_eq!(shares, [(0.0, 20.0), (20.0, 40.0), (40.0, 0.0)]);

    // A port that nobody listens at.
    let gone = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let told = Some(json!({"url": format!("http://{gone}/")}));
    admin.deploy("sum", &model(3.0, 0.0, 0).rollout(Rollout { hook: told, ..manual(20.0) }))?;
    wait::until("the failure to be seen", LIMIT, || {
        Ok(admin.rollout("sum")?["hook_failure"].as_str().is_some_and(|it| it.contains("refused")))
    })?;
    wait::until("the audit log to say so", LIMIT, || {
        let audit = admin.get("/v1/audit?endpoint=sum")?.ok()?.json()?.to_string();
        Ok(audit.contains("rollout_hook"))
    })?;
    admin.steer_rollout("sum", "abort", &Value::Null)?;
    let told = Some(json!({"url": "notaurl"}));
    let rollout = Rollout { hook: told, ..manual(20.0) };
    let refused = admin.deploy_refused("sum", &model(4.0, 0.0, 0).rollout(rollout))?;
    ensure!(refused.message.contains("write http://"), "{refused}");
    Ok(())
}

/// A service that takes every connection and answers none.
fn silent_service() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/hook", listener.local_addr()?);
    std::thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    Ok(url)
}

#[test]
fn a_hook_that_hangs_keeps_nobody_else_waiting() -> Result<()> {
    let server = Server::start()?;
    let mut admin = server.admin()?;
    let quick = |hook: Option<Value>| {
        model(2.0, 0.0, 0).rollout(Rollout { hook, ..Rollout::of(quick_canary()) })
    };
    admin.deploy("slow", &model(1.0, 0.0, 0))?;
    let hook = json!({"url": silent_service()?, "confirm": true});
    admin.deploy("slow", &quick(Some(hook)))?;
    wait::until("the hook to be asked", LIMIT, || {
        let reason = admin.rollout("slow")?["reason"].take();
        Ok(reason.as_str().is_some_and(|reason| reason.contains("the hook is asked about begin")))
    })?;
    // All of this while the service is silent, which it may be for 5 s.
    let started = Instant::now();
    admin.deploy("sum", &model(1.0, 0.0, 0))?;
    admin.deploy("sum", &quick(None))?;
    let load = traffic(&server);
    let end = ended(&mut admin)?;
    load.finish()?;
    assert_eq!(end["phase"], "promoted", "{end}");
    assert_eq!(admin.steer_rollout("slow", "abort", &Value::Null)?["phase"], "aborted");
    ensure!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    Ok(())
}
