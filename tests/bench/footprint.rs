//! Idle resident memory, time to ready with cached artifacts, size of the binary.

use std::time::Duration;

use anyhow::Result;
use mortise_tests::{Deployment, Options, Server, infer, onnx, paths, stats, wait};
use serde_json::json;

use crate::report;

const STARTS: usize = 5;

/// The endpoints of the demo; their plugins are cached after the first start.
pub(crate) fn run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = folder.path().join("store");
    let options = Options { store: Some(store), ..Options::default() };
    let server = Server::start_with(options.clone())?;
    for name in ["digits", "breast-cancer", "wine"] {
        server.admin()?.deploy(name, &Deployment::onnx(onnx::tagged_network(1.0)))?;
    }
    drop(server);
    let (mut ready_ms, mut rss) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let server = Server::start_with(options.clone())?;
        ready_ms.push(server.ready_after.as_secs_f64() * 1e3);
        let request = infer::json_fp32("x", 64, &[0.5; 64]);
        server.client().post(&infer::path("digits"), &request)?.ok()?;
        // Idle: after the first answer, when start-up work has gone.
        wait::pass(Duration::from_secs(1));
        rss.push(server.rss_bytes()? as f64);
    }
    let (ready_ms, rss) = (stats::median(ready_ms), stats::median(rss));
    let binary_bytes = std::fs::metadata(paths::mortise())?.len();
    println!("idle memory with 3 endpoints  {:>8.1} MB", rss / 1e6);
    println!("start to ready                {ready_ms:>8.1} ms (median of {STARTS})");
    println!("binary                        {:>8.1} MB", binary_bytes as f64 / 1e6);
    let result = json!({
        "rss_idle_bytes": rss as u64, "ready_ms": ready_ms, "binary_bytes": binary_bytes,
        "endpoints": 3, "starts": STARTS,
    });
    report::print(result, json!({"mortise": report::our_version()}));
    Ok(())
}
