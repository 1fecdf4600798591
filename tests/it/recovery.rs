//! What survives the end of the process, and who may own a store.

use anyhow::{Result, ensure};
use mortise_tests::{Deployment, Options, Server, infer, onnx};

fn ask(server: &Server, endpoint: &str) -> Result<String> {
    let request = infer::json_fp32("x", 1, &[0.0]);
    let answer = server.client().post(&infer::path(endpoint), &request)?.ok()?.json()?;
    Ok(format!("{} {}", answer["model_version"], answer["outputs"][0]["data"]))
}

#[test]
fn deployments_survive_kill_9() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let options = Options { store: Some(folder.path().join("store")), ..Options::default() };
    let mut server = Server::start_with(options.clone())?;
    let mut admin = server.admin()?;
    for tag in [1.0, 2.0, 3.0] {
        admin.deploy("a", &Deployment::onnx(onnx::tagged_sum(tag)))?;
    }
    admin.rollback("a")?;
    admin.deploy("b", &Deployment::onnx(onnx::tagged_sum(5.0)).version(5))?;
    admin.deploy("gone", &Deployment::onnx(onnx::tagged_sum(1.0)))?;
    admin.undeploy("gone")?;
    let before = [ask(&server, "a")?, ask(&server, "b")?];
    server.kill()?;
    let server = Server::start_with(options)?;
    assert_eq!([ask(&server, "a")?, ask(&server, "b")?], before);
    assert_eq!(server.client().get("/v2/models/gone")?.status, 404);
    assert_eq!(before, ["\"2\" [2.0]", "\"5\" [5.0]"]);
    Ok(())
}

#[test]
fn a_store_has_one_owner() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let options = Options { store: Some(folder.path().join("store")), ..Options::default() };
    let first = Server::start_with(options.clone())?;
    let Err(error) = Server::start_with(options) else {
        anyhow::bail!("two servers own one store");
    };
    let text = format!("{error:#}");
    ensure!(text.contains("store") && text.contains("lock") || text.contains("use"), "{text}");
    assert_eq!(first.client().get("/v2/health/ready")?.status, 200);
    Ok(())
}

#[test]
fn unknown_keys_are_refused_with_a_suggestion() -> Result<()> {
    let cases = [
        ("[http]\nmax_body_byts = 1\n", "max_body_bytes"),
        ("[htp]\nmax_body_bytes = 1\n", "http"),
        ("[deploy]\nkeep_version = 1\n", "keep_versions"),
    ];
    for (config, suggestion) in cases {
        let options = Options { config: config.to_owned(), ..Options::default() };
        let Err(error) = Server::start_with(options) else {
            anyhow::bail!("started with {config}");
        };
        let text = format!("{error:#}");
        ensure!(text.contains(suggestion), "{config}: {text}");
    }
    Ok(())
}
