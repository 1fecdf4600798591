//! Hostile plugins over HTTP: what the client sees of each, and that nobody else
//! sees anything.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mortise_tests::admin::{Part, Refusal};
use mortise_tests::load::{Load, status_200};
use mortise_tests::{
    Client, Deployment, Options, Response, Server, http1, infer, onnx, paths, wait,
};
use serde_json::json;

/// Limits small enough that each guest runs into one of them soon.
const CONFIG: &str = "
[http]
request_timeout_ms = 3000
[plugins]
call_timeout_ms = 300
load_timeout_ms = 2000
memory_bytes = 67108864
[server]
log = \"error\"
";

/// A server with a well-behaved endpoint, `sum`.
fn server() -> Result<Server> {
    let server = Server::start_with(Options { config: CONFIG.to_owned(), ..Options::default() })?;
    server.admin()?.deploy("sum", &Deployment::onnx(onnx::tagged_sum(7.0)))?;
    Ok(server)
}

fn guest(name: &str) -> Result<Vec<u8>> {
    let path = paths::guest(name);
    std::fs::read(&path)
        .with_context(|| format!("read {}: `cargo xtask test` builds it", path.display()))
}

fn evil(behave: &str, when: &str) -> Result<Deployment> {
    let part = Part::uploaded("evil", guest("evil")?);
    Ok(Deployment::of(part.set("behave", behave).set("when", when)))
}

/// A request for the evil guest; negative numbers provoke it.
fn provocation() -> Vec<u8> {
    let input = json!({"name": "x", "datatype": "FP32", "shape": [2], "data": [-1.0, 2.0]});
    json!({"inputs": [input]}).to_string().into_bytes()
}

fn provoke(client: &mut Client) -> Result<Response> {
    client.post(&infer::path("evil"), &provocation())
}

fn check_well(server: &Server, after: &str) -> Result<()> {
    let request = infer::json_fp32("x", 1, &[1.0]);
    let answer = server.client().post(&infer::path("sum"), &request)?;
    ensure!(answer.status == 200, "after {after}, the neighbour answers: {}", answer.text());
    let ready = server.client().get("/v2/health/ready")?.status;
    ensure!(ready == 200, "after {after}, the server answers {ready} to whether it is ready");
    Ok(())
}

/// What a client of `predict` sees: the status, and words of the message.
const IN_PREDICT: &[(&str, u16, &[&str])] = &[
    ("echo", 200, &[]),
    ("loop", 500, &["evil", "300 ms"]),
    ("trap", 500, &["evil"]),
    ("stack-overflow", 500, &["evil", "stack"]),
    ("memory-bomb", 500, &["evil", "memory"]),
    ("handle-bomb", 500, &["evil"]),
    ("tensor-bomb", 500, &["evil"]),
    ("call-bomb", 500, &["evil"]),
    ("log-flood", 200, &[]),
    ("log-line", 200, &[]),
    ("wrong-shape", 500, &["evil", "y"]),
    ("wrong-dtype", 500, &["evil", "y"]),
    ("wrong-count", 500, &["evil"]),
    ("lying-length", 500, &["evil"]),
    ("huge-shape", 500, &["evil"]),
    ("lying-offsets", 500, &["evil"]),
    ("panic", 500, &["evil"]),
    ("error-invalid", 400, &["x must be tame"]),
    ("error-unsupported", 400, &["wild x"]),
    ("error-failed", 500, &["out of luck"]),
    ("run-loop", 500, &["evil"]),
];

#[test]
fn each_guest_harms_only_its_own_request() -> Result<()> {
    let server = server()?;
    let mut admin = server.admin()?;
    let mut findings = Vec::new();
    for (behave, status, words) in IN_PREDICT {
        // Deploying asks once, for warming up; only a negative number provokes.
        if let Err(error) = admin.deploy("evil", &evil(behave, "negative")?) {
            findings.push(format!("{behave}: {error:#}"));
            continue;
        }
        let answer = provoke(&mut server.client())?;
        let text = answer.text();
        let missing = words.iter().find(|word| !text.contains(**word));
        if answer.status != *status || missing.is_some() {
            findings.push(format!("{behave}: {} {text}, without {missing:?}", answer.status));
        }
        check_well(&server, behave)?;
        admin.undeploy("evil")?;
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    drained(&server)
}

/// Unloading completes: nothing of the guests is left.
fn drained(server: &Server) -> Result<()> {
    let mut admin = server.admin()?;
    wait::until("old revisions to go", Duration::from_secs(20), || {
        let status = admin.get("/v1/status")?.ok()?.json()?;
        Ok(status["draining"].as_array().is_some_and(Vec::is_empty))
    })
}

/// What the one who deploys sees: the status, and words of the reason.
const IN_LOAD: &[(&str, u16, &[&str])] = &[
    ("panic-in-load", 500, &["boom in load"]),
    ("loop-in-load", 500, &["evil"]),
    ("memory-bomb-in-load", 500, &["evil", "memory"]),
    ("error-in-load", 400, &["this model is not to be loaded"]),
    ("bad-signature", 500, &["evil"]),
    ("missing-asset", 400, &["no asset \"model\""]),
    ("fold-bomb", 500, &[]),
    ("node-bomb", 500, &[]),
    ("nesting-bomb", 500, &[]),
    ("builder-bomb", 500, &[]),
    ("unknown-op", 400, &["Frobnicate"]),
];

#[test]
fn guests_that_misbehave_in_load_do_not_go_live() -> Result<()> {
    let server = server()?;
    let mut admin = server.admin()?;
    let mut findings = Vec::new();
    for (behave, status, words) in IN_LOAD {
        match admin.deploy_refused("evil", &evil(behave, "always")?) {
            Ok(Refusal { status: got, message, .. }) => {
                let missing = words.iter().find(|word| !message.contains(**word));
                if got != *status || missing.is_some() {
                    findings.push(format!("{behave}: {got} {message}, without {missing:?}"));
                }
            }
            Err(error) => findings.push(format!("{behave}: {error:#}")),
        }
        check_well(&server, behave)?;
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    Ok(())
}

/// Plans that go wrong may be refused when they are deployed, or answer with an
/// error; they must not answer otherwise.
#[test]
fn hostile_plans_end_in_errors() -> Result<()> {
    let server = server()?;
    let mut admin = server.admin()?;
    for behave in ["onnx-loop", "shape-bomb", "doubling-bomb"] {
        match admin.try_deploy("evil", &evil(behave, "always")?, &mut |_| {})? {
            Err(refusal) => ensure!(!refusal.message.is_empty(), "{behave}: no reason"),
            Ok(_) => {
                let answer = provoke(&mut server.client())?;
                ensure!(answer.status >= 500, "{behave}: {} {}", answer.status, answer.text());
                admin.undeploy("evil")?;
            }
        }
        check_well(&server, behave)?;
    }
    Ok(())
}

#[test]
fn components_that_do_not_fit_are_refused() -> Result<()> {
    let server = server()?;
    let mut admin = server.admin()?;
    let whole = guest("evil")?;
    let cases: [(&str, Vec<u8>, &[&str]); 4] = [
        ("undeclared import", guest("undeclared")?, &["shell"]),
        ("wrong world", guest("apply")?, &["transform"]),
        ("truncated", whole[..whole.len() / 3].to_vec(), &[]),
        ("corrupted", whole.iter().map(|byte| byte ^ 0x20).collect(), &[]),
    ];
    for (name, component, words) in cases {
        let deployment = Deployment::of(Part::uploaded("mine", component));
        let refusal = admin.deploy_refused("mine", &deployment).context(name)?;
        ensure!(refusal.status == 400, "{name}: {refusal}");
        let missing = words.iter().find(|word| !refusal.message.contains(**word));
        ensure!(missing.is_none(), "{name}: {refusal}, without {missing:?}");
        check_well(&server, name)?;
    }
    Ok(())
}

#[test]
fn repeated_traps_lead_to_quarantine_and_back() -> Result<()> {
    let server = server()?;
    server.admin()?.deploy("evil", &evil("trap", "negative")?)?;
    let mut client = server.client();
    let quarantined = (0..20).find_map(|_| {
        let answer = provoke(&mut client).ok()?;
        (answer.status == 503).then_some(answer)
    });
    let answer = quarantined.context("twenty traps, and no quarantine")?;
    ensure!(answer.header("retry-after").is_some(), "503 without Retry-After");
    ensure!(answer.text().contains("quarantine"), "{}", answer.text());
    ensure!(client.get("/v2/models/evil/ready")?.status == 503, "ready in quarantine");
    check_well(&server, "a quarantine")?;
    wait::until("the quarantine to end", Duration::from_secs(10), || {
        let good = json!({"inputs": [
            {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]});
        Ok(client.post_json(&infer::path("evil"), &good)?.status == 200)
    })
}

/// A forged file in the cache of compiled components is not run: the component
/// is compiled again.
#[test]
fn forged_artifacts_are_not_loaded() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = folder.path().join("store");
    let options = Options { store: Some(store.clone()), ..Options::default() };
    let mut server = Server::start_with(options.clone())?;
    server.admin()?.deploy("evil", &evil("echo", "always")?)?;
    server.kill()?;
    let mut forged = 0;
    for file in files_below(&store)? {
        // Artifacts are ELF files with an authentication code around them.
        let mut bytes = std::fs::read(&file)?;
        if let Some(at) =
            bytes.windows(4).position(|window| window == b"\x7fELF").filter(|at| *at < 4096)
        {
            let middle = at + (bytes.len() - at) / 2;
            bytes[middle] ^= 1;
            std::fs::write(&file, &bytes)?;
            forged += 1;
        }
    }
    ensure!(forged > 0, "no cached artifact found below {}", store.display());
    let server = Server::start_with(options)?;
    let answer = provoke(&mut server.client())?;
    ensure!(answer.status == 200, "{}", answer.text());
    Ok(())
}

fn files_below(folder: &std::path::Path) -> Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}

/// The share of its own throughput that a neighbour keeps, at the least. On an
/// idle machine it is above 0.4; this only catches a neighbour that starves.
const LEAST_SHARE: f64 = 0.2;

/// Other tests run beside this one: the best of a few tries counts.
const TRIES: usize = 3;

#[test]
fn neighbours_keep_their_throughput() -> Result<()> {
    let server = server()?;
    let mut admin = server.admin()?;
    let mut shares = Vec::new();
    for (behave, ..) in IN_PREDICT {
        admin.deploy("evil", &evil(behave, "negative")?)?;
        let mut best = 0.0_f64;
        for _ in 0..TRIES {
            best = best.max(share_beside_guest(&server).context(*behave)?);
            if best >= LEAST_SHARE {
                break;
            }
        }
        shares.push((*behave, best));
        check_well(&server, behave)?;
        admin.undeploy("evil")?;
    }
    shares.iter().for_each(|(behave, share)| println!("{behave:<16} {share:.2}"));
    let starved: Vec<_> = shares.iter().filter(|(_, share)| *share < LEAST_SHARE).collect();
    assert!(starved.is_empty(), "{starved:?}");
    drained(&server)
}

/// The neighbour's throughput while 8 clients provoke the guest, over that alone.
fn share_beside_guest(server: &Server) -> Result<f64> {
    let slice = Duration::from_millis(700);
    let neighbour = load(server, "sum", infer::json_fp32("x", 1, &[1.0]), 16);
    let alone = neighbour.run(slice)?;
    let hammer = load(server, "evil", provocation(), 8).start();
    let beside = neighbour.run(slice)?;
    hammer.finish()?;
    ensure!(beside.failed == 0, "{} requests of the neighbour failed", beside.failed);
    Ok(beside.rps() / alone.rps().max(1.0))
}

fn load(server: &Server, endpoint: &str, body: Vec<u8>, connections: usize) -> Load {
    let request = http1::request("POST", &infer::path(endpoint), &[], &body);
    let requests = std::sync::Arc::new(vec![request]);
    Load { address: server.http, connections, requests, check: status_200() }
}
