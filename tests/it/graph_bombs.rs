//! Models that would take all the time or memory there is: each is refused when
//! it is deployed, or stopped when it is asked, and the server stays well.

use anyhow::{Result, ensure};
use mortise_tests::onnx::{Graph, graph_attribute};
use mortise_tests::{Deployment, Options, Server, infer, onnx};

/// One second for a request, so that the tests are quick.
fn server() -> Result<Server> {
    let config = "[http]\nrequest_timeout_ms = 1000\n[plugins]\nload_timeout_ms = 5000\n";
    let server = Server::start_with(Options { config: config.to_owned(), ..Options::default() })?;
    server.admin()?.deploy("sum", &Deployment::onnx(onnx::tagged_sum(7.0)))?;
    Ok(server)
}

fn check_well(server: &Server, after: &str) -> Result<()> {
    let request = infer::json_fp32("x", 1, &[1.0]);
    let answer = server.client().post(&infer::path("sum"), &request)?;
    ensure!(answer.status == 200, "after {after}: {}", answer.text());
    ensure!(server.client().get("/v2/health/ready")?.status == 200, "not ready after {after}");
    Ok(())
}

#[test]
fn an_endless_loop_ends_at_the_deadline_or_the_bound() -> Result<()> {
    let server = server()?;
    let mut admin = server.admin()?;
    admin.deploy("loop", &Deployment::onnx(onnx::endless_loop()))?;
    let request = infer::json_fp32("x", 1, &[1.0]);
    let answer = server.client().post(&infer::path("loop"), &request)?;
    ensure!(matches!(answer.status, 500 | 504), "{}: {}", answer.status, answer.text());
    check_well(&server, "an endless loop")?;
    admin.undeploy("loop")?;
    Ok(())
}

/// A graph whose output has as many elements as the request says.
fn shape_bomb() -> Vec<u8> {
    Graph::default()
        .input("x", &[-1, 1])
        .output("y", &[-1, -1])
        .int64s("wide", &[2], &[1, 1 << 40])
        .node("Expand", &["x", "wide"], &["y"])
        .model()
}

fn constant_bomb() -> Vec<u8> {
    Graph::default()
        .input("x", &[-1, 1])
        .output("y", &[-1, -1])
        .int64s("shape", &[2], &[1 << 20, 1 << 20])
        .node("ConstantOfShape", &["shape"], &["huge"])
        .node("Add", &["huge", "huge"], &["more"])
        .node("Add", &["x", "more"], &["y"])
        .model()
}

/// Each constant is small; all of them together are not.
fn many_constants_bomb() -> Vec<u8> {
    let graph = Graph::default().input("x", &[-1, 1]).output("y", &[-1, -1]).int64s(
        "shape",
        &[2],
        &[1024, 1024],
    );
    let graph = graph.node("ConstantOfShape", &["shape"], &["c0"]);
    let names: Vec<String> = (0..=2_000).map(|index| format!("c{index}")).collect();
    let graph = names
        .windows(2)
        .fold(graph, |graph, pair| graph.node("Add", &[&pair[0], "c0"], &[&pair[1]]));
    graph.node("Add", &["x", &names[2_000]], &["y"]).model()
}

fn endless_constant_loop() -> Vec<u8> {
    let body = Graph::default()
        .input_int64("i")
        .input_bool("go_in")
        .input("v_in", &[1, 1])
        .node("Identity", &["go_in"], &["go_out"])
        .node("Add", &["v_in", "v_in"], &["v_out"])
        .output_bool("go_out")
        .output("v_out", &[1, 1]);
    Graph::default()
        .input("x", &[-1, 1])
        .output("y", &[-1, 1])
        .bool("go", true)
        .floats("start", &[1, 1], &[1.0])
        .node_with("Loop", &["", "go", "start"], &["c"], &[graph_attribute("body", &body)])
        .node("Add", &["x", "c"], &["y"])
        .model()
}

/// Branches inside branches, deeper than any exporter nests them.
fn nesting_bomb() -> Vec<u8> {
    let leaf = || Graph::default().node("Identity", &["x"], &["b"]).output("b", &[-1, 1]);
    let nested = (0..200).fold(leaf(), |inner, _| {
        let branches =
            [graph_attribute("then_branch", &inner), graph_attribute("else_branch", &leaf())];
        Graph::default().node_with("If", &["go"], &["b"], &branches).output("b", &[-1, 1])
    });
    let branches =
        [graph_attribute("then_branch", &nested), graph_attribute("else_branch", &leaf())];
    Graph::default()
        .input("x", &[-1, 1])
        .output("y", &[-1, 1])
        .bool("go", true)
        .node_with("If", &["go"], &["y"], &branches)
        .model()
}

#[test]
fn bombs_are_refused_or_answered_with_an_error() -> Result<()> {
    let server = server()?;
    let mut admin = server.admin()?;
    let bombs = [
        ("shape bomb", shape_bomb()),
        ("constant bomb", constant_bomb()),
        ("many constants", many_constants_bomb()),
        ("endless constant loop", endless_constant_loop()),
        ("nesting bomb", nesting_bomb()),
    ];
    let mut findings = Vec::new();
    for (name, model) in bombs {
        match admin.try_deploy("bomb", &Deployment::onnx(model), &mut |_| {})? {
            Err(refusal) if refusal.message.is_empty() => {
                findings.push(format!("{name}: refused without a reason"));
            }
            Err(_) => {}
            Ok(_) => {
                let request = infer::json_fp32("x", 1, &[1.0]);
                let answer = server.client().post(&infer::path("bomb"), &request)?;
                if answer.status == 200 || answer.json()?["error"].as_str().is_none() {
                    findings.push(format!("{name}: {} {}", answer.status, answer.text()));
                }
                admin.undeploy("bomb")?;
            }
        }
        check_well(&server, name)?;
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    Ok(())
}
