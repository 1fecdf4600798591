//! The page about operating a server: its own commands, in their order.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mortise_tests::{paths, wait};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

/// The blocks of the page with their languages.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    let fenced = page.split("\n```").skip(1).step_by(2);
    fenced.filter_map(|block| block.split_once('\n')).collect()
}

/// A server that must not outlive the test.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended; either way it must not stay behind.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_command_of_the_page_works() -> Result<()> {
    let page = fs::read_to_string(paths::root().join("runtime/server/OPERATING.md"))?;
    let folder = tempfile::tempdir()?;
    std::os::unix::fs::symlink(
        paths::root().join("plugins").canonicalize()?,
        folder.path().join("plugins"),
    )?;
    let mortise = paths::mortise().canonicalize()?;
    let shell = |script: &str| {
        let bin = mortise.parent().unwrap_or(&mortise).display();
        let mut command = Command::new("bash");
        command.arg("-ec").arg(format!("PATH={bin}:$PATH\n{script}")).current_dir(folder.path());
        command
    };
    let config: Vec<&str> = blocks(&page)
        .iter()
        .filter(|(language, _)| *language == "toml")
        .map(|(_, text)| *text)
        .collect();
    fs::write(folder.path().join("mortise.toml"), config.join("\n"))?;

    let mut server: Option<(Serving, Value)> = None;
    let mut count = 0;
    for (_, script) in blocks(&page).into_iter().filter(|(language, _)| *language == "sh") {
        if script.starts_with("mortise serve ") {
            let ports = "--http-port 0 --grpc-port 0 --metrics-port 0 --admin-port 0";
            let ready = folder.path().join("ready");
            let mut command = shell(&format!("exec {} {ports} > ready", script.trim()));
            let child = Serving(command.stderr(Stdio::null()).spawn()?);
            wait::until("the server", LIMIT, || {
                Ok(fs::read_to_string(&ready).is_ok_and(|line| line.ends_with('\n')))
            })?;
            server = Some((child, serde_json::from_str(&fs::read_to_string(&ready)?)?));
            continue;
        }
        let mut script = script.to_owned();
        if let Some((child, addresses)) = &server {
            // The ports and the process of this server, which is not alone here.
            for (port, plane) in [("8000", "http"), ("8002", "metrics")] {
                let address = addresses[plane].as_str().context("no address")?;
                script = script.replace(&format!("localhost:{port}"), address);
            }
            script = script.replace("$(pidof mortise)", &child.0.id().to_string());
        }
        let output = shell(&script).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{script}\n{said}");
        count += 1;
    }
    // The last one ends the server.
    let (mut serving, _) = server.context("the page starts no server")?;
    wait::until("the end", LIMIT, || Ok(serving.0.try_wait()?.is_some()))?;
    ensure!(count >= 5, "only {count} blocks of commands were found");
    Ok(())
}
