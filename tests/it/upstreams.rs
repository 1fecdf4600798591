//! Versions that another server answers: canaried, shadowed, killed, hanging.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mortise_tests::admin::{Part, Rollout};
use mortise_tests::load::{Load, Running, status_200};
use mortise_tests::{Admin, Deployment, Options, Server, http1, infer, onnx, wait};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

/// A model that answers `x + tag`.
fn model(tag: f32) -> Deployment {
    Deployment::onnx(onnx::tagged_sum(tag))
}

/// A server whose model answers `x + tag`.
fn other_server(tag: f32) -> Result<Server> {
    let server = Server::start()?;
    server.admin()?.deploy("sum", &model(tag))?;
    Ok(server)
}

fn upstream(address: SocketAddr) -> Part {
    Part::upstream(address).set("check_every_ms", 100)
}

fn canary() -> Rollout {
    let strategy = Part::builtin("canary")
        .set("interval", "1s")
        .set("check", "100ms")
        .set("min_samples", 20)
        .set("steps", json!([25, 50, 100]))
        // Over the network, and on a machine that is shared.
        .set("latency_tolerance", 1_000);
    Rollout::of(strategy)
}

fn manual(percent: f64) -> Rollout {
    Rollout::of(Part::builtin("manual").set("weight", percent))
}

/// Every request must be answered, whatever happens to the upstream.
fn traffic(server: &Server) -> Running {
    let request = |x: u32| {
        let body = infer::json_fp32("x", 1, &[x as f32]);
        http1::request("POST", &infer::path("sum"), &[], &body)
    };
    let requests = Arc::new((0..500).map(request).collect());
    Load { address: server.http, connections: 4, requests, check: status_200() }.start()
}

/// What version `version` adds.
fn tag(server: &Server, version: u64) -> Result<f64> {
    let body = infer::json_fp32("x", 1, &[0.0]);
    let path = format!("/v2/models/sum/versions/{version}/infer");
    let reply = server.client().send("POST", &path, &[], &body)?.ok()?.json()?;
    reply["outputs"][0]["data"][0].as_f64().with_context(|| format!("no number: {reply}"))
}

fn requests(admin: &mut Admin, variant: &str) -> Result<u64> {
    admin.rollout("sum")?[variant]["requests"].as_u64().context("no count")
}

fn ended(admin: &mut Admin) -> Result<Value> {
    wait::until("the rollout to end", LIMIT, || Ok(admin.rollout("sum")?["phase"] != "running"))?;
    admin.rollout("sum")
}

#[test]
fn an_upstream_that_is_killed_loses_no_request_and_is_rolled_back() -> Result<()> {
    let mut other = other_server(5.0)?;
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0))?;
    let version = Deployment::of(upstream(other.http)).rollout(canary());
    admin.deploy("sum", &version)?;
    assert_eq!((tag(&server, 1)?, tag(&server, 2)?), (1.0, 5.0));
    let load = traffic(&server);
    wait::until("requests there", LIMIT, || Ok(requests(&mut admin, "candidate")? > 50))?;
    let address = other.http.to_string();
    other.kill()?;
    let end = ended(&mut admin)?;
    let outcome = load.finish()?;
    assert_eq!((outcome.failed, outcome.wrong), (0, 0), "{end}");
    assert_eq!(end["phase"], "rolled_back", "{end}");
    let reason = end["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("failed") && reason.contains(&address), "{reason}");
    ensure!(end["candidate"]["fallbacks"].as_u64() > Some(0), "{end}");
    let audit = admin.get("/v1/audit?endpoint=sum")?.ok()?.json()?.to_string();
    ensure!(audit.contains(&address), "the audit log does not say why: {audit}");
    Ok(())
}

#[test]
fn a_model_moves_here_from_a_server_that_dies_on_the_way() -> Result<()> {
    let mut other = other_server(5.0)?;
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &Deployment::of(upstream(other.http)))?;
    assert_eq!(tag(&server, 1)?, 5.0);
    admin.deploy("sum", &model(1.0).rollout(canary()))?;
    let load = traffic(&server);
    wait::until("requests here", LIMIT, || Ok(requests(&mut admin, "candidate")? > 50))?;
    other.kill()?;
    let end = ended(&mut admin)?;
    let outcome = load.finish()?;
    assert_eq!((outcome.failed, outcome.wrong), (0, 0), "{end}");
    assert_eq!(end["phase"], "promoted", "{end}");
    ensure!(end["stable"]["fallbacks"].as_u64() > Some(0), "{end}");
    ensure!(end["stable"]["last_error"].as_str().is_some(), "{end}");
    assert_eq!(tag(&server, 2)?, 1.0);
    Ok(())
}

#[test]
fn an_upstream_over_grpc_is_asked_and_left_when_it_dies() -> Result<()> {
    let mut other = other_server(5.0)?;
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0))?;
    let upstream = Part::upstream_over("grpc", other.grpc).set("check_every_ms", 100);
    admin.deploy("sum", &Deployment::of(upstream).rollout(manual(50.0)))?;
    assert_eq!((tag(&server, 1)?, tag(&server, 2)?), (1.0, 5.0));
    let load = traffic(&server);
    wait::until("requests there", LIMIT, || Ok(requests(&mut admin, "candidate")? > 50))?;
    // What hangs costs half of the deadline and no answer; checks see it too.
    other.pause();
    let fallbacks = |admin: &mut Admin| -> Result<u64> {
        let rollout = admin.rollout("sum")?;
        rollout["candidate"]["fallbacks"].as_u64().context("no count")
    };
    wait::until("fallbacks", LIMIT, || Ok(fallbacks(&mut admin)? > 20))?;
    other.resume();
    wait::until("it to answer again", LIMIT, || Ok(tag(&server, 2).is_ok()))?;
    let before = fallbacks(&mut admin)?;
    other.kill()?;
    wait::until("fallbacks", LIMIT, || Ok(fallbacks(&mut admin)? > before + 20))?;
    let outcome = load.finish()?;
    assert_eq!((outcome.failed, outcome.wrong), (0, 0));
    let error = admin.rollout("sum")?["candidate"]["last_error"].take();
    let address = format!("grpc://{}", other.grpc);
    ensure!(error.as_str().is_some_and(|error| error.contains(&address)), "{error}");
    Ok(())
}

#[test]
fn a_restart_needs_no_upstream_and_one_that_is_back_is_asked_again() -> Result<()> {
    let other = other_server(5.0)?;
    let folder = tempfile::tempdir()?;
    let options = Options { store: Some(folder.path().join("store")), ..Options::default() };
    let mut server = Server::start_with(options.clone())?;
    server.admin()?.deploy("sum", &model(1.0))?;
    let slow = upstream(other.http).set("timeout_ms", 200);
    server.admin()?.deploy("sum", &Deployment::of(slow).rollout(manual(50.0)))?;
    other.pause();
    server.kill()?;
    server = Server::start_with(options)?;
    let mut admin = server.admin()?;
    assert_eq!(admin.rollout("sum")?["phase"], "running");
    let load = traffic(&server);
    wait::until("fallbacks", LIMIT, || {
        Ok(admin.rollout("sum")?["candidate"]["fallbacks"].as_u64() > Some(10))
    })?;
    ensure!(tag(&server, 2).is_err(), "a server that is stopped answered");
    wait::until("the status to say so", LIMIT, || {
        let obstacles = admin.rollout("sum")?["obstacles"].take();
        Ok(obstacles[0].as_str().is_some_and(|it| it.starts_with("version 2: ")))
    })?;
    let metrics = mortise_tests::Client::new(server.metrics).get("/metrics")?.ok()?.text_whole();
    let gone = "mortise_version_ready{endpoint=\"sum\",version=\"2\"} 0";
    ensure!(metrics.contains(gone), "{metrics}");
    other.resume();
    wait::until("the upstream to be asked again", LIMIT, || {
        Ok(tag(&server, 2).is_ok_and(|tag| tag == 5.0))
    })?;
    assert_eq!(load.finish()?.failed, 0);
    Ok(())
}

/// A server that says what its model is and that it is ready, and answers no
/// inference: the connection stays open.
fn hanging_server() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || hang(stream));
        }
    });
    Ok(address)
}

fn hang(mut stream: TcpStream) -> std::io::Result<()> {
    let metadata = r#"{"name":"sum","versions":["1"],"platform":"none",
        "inputs":[{"name":"x","datatype":"FP32","shape":[-1,1]}],
        "outputs":[{"name":"y","datatype":"FP32","shape":[-1,1]}],
        "extensions":["binary_tensor_data"]}"#;
    let mut head = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        head.push(byte[0]);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        if head.starts_with(b"POST") {
            // Reads on, and says nothing, until the other side gives up.
            return std::io::copy(&mut stream, &mut std::io::sink()).map(drop);
        }
        let length = metadata.len();
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{metadata}")?;
        head.clear();
    }
    Ok(())
}

#[test]
fn an_upstream_that_hangs_fails_no_request_in_its_place_or_as_a_shadow() -> Result<()> {
    let hanging = hanging_server()?;
    let server = Server::start()?;
    let mut admin = server.admin()?;
    admin.deploy("sum", &model(1.0))?;
    let slow = upstream(hanging).set("timeout_ms", 200);
    admin.deploy("sum", &Deployment::of(slow).rollout(manual(50.0)))?;
    let load = traffic(&server);
    wait::until("fallbacks", LIMIT, || {
        Ok(admin.rollout("sum")?["candidate"]["fallbacks"].as_u64() > Some(10))
    })?;
    assert_eq!(load.finish()?.failed, 0);
    let error = admin.rollout("sum")?["candidate"]["last_error"].take();
    ensure!(error.as_str().is_some_and(|error| error.contains("timeout_ms = 200")), "{error}");
    admin.steer_rollout("sum", "abort", &Value::Null)?;

    let router = Part::builtin("shadow").set("share", 1.0);
    let rollout = Rollout { router: Some(router), ..manual(0.0) };
    admin.deploy("sum", &Deployment::of(upstream(hanging)).rollout(rollout))?;
    let started = Instant::now();
    let load = traffic(&server);
    wait::until("copies to be dropped", LIMIT, || {
        Ok(admin.rollout("sum")?["candidate"]["shadow_dropped"].as_u64() > Some(100))
    })?;
    let outcome = load.finish()?;
    assert_eq!(outcome.failed, 0);
    ensure!(outcome.latency_us(0.99) < 1_000_000, "replies waited: {:?}", started.elapsed());
    Ok(())
}

#[test]
fn what_cannot_be_asked_is_refused_when_it_is_deployed() -> Result<()> {
    let other = other_server(5.0)?;
    let server = Server::start()?;
    let mut admin = server.admin()?;
    let cases = [
        (upstream(other.http).set("model", "none"), "unknown model"),
        (upstream(other.http).set("timeout", 5), "unknown field `timeout`"),
        (Part { url: Some("ftp://there".to_owned()), ..upstream(other.http) }, "grpcs://"),
        // It does not speak TLS.
        (Part::upstream_over("https", other.http), "cannot be reached"),
        (Part::upstream_over("grpcs", other.grpc), "cannot be reached"),
        (upstream("127.0.0.1:1".parse()?), "cannot be reached"),
        (Part::upstream_over("grpc", "127.0.0.1:1".parse()?), "cannot be reached"),
        (Part::upstream_over("grpc", other.grpc).set("model", "none"), "unknown model"),
    ];
    for (part, want) in cases {
        let refusal = admin.deploy_refused("sum", &Deployment::of(part))?;
        ensure!(refusal.message.contains(want), "{refusal}");
    }
    Ok(())
}
