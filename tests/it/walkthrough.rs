//! The README's walk-through of a canary, its own commands in their order.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mortise_tests::{paths, wait};

/// A process that must not outlive the test.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended; either way it must not stay behind.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines that begin with `mortise` in the section of this title.
fn commands(readme: &str, title: &str) -> Vec<Vec<String>> {
    let section = readme.split("\n## ").find(|section| section.starts_with(title));
    let lines = section.unwrap_or_default().lines().filter(|line| line.starts_with("mortise "));
    lines.map(|line| line.split_whitespace().skip(1).map(str::to_owned).collect()).collect()
}

struct Shell<'a> {
    store: &'a std::path::Path,
}

impl Shell<'_> {
    fn command(&self, arguments: &[String]) -> Command {
        let store = self.store.display().to_string();
        let mut command = Command::new(paths::mortise());
        command.current_dir(paths::root());
        command.args(arguments.iter().map(|argument| argument.replace("./demo", &store)));
        command
    }

    fn run(&self, arguments: &[String]) -> Result<Output> {
        self.command(arguments).output().with_context(|| format!("run {arguments:?}"))
    }
}

#[test]
fn a_canary_is_promoted_and_another_is_rolled_back_in_three_minutes() -> Result<()> {
    let readme = std::fs::read_to_string(paths::root().join("README.md"))?;
    let commands = commands(&readme, "A canary");
    let [demo, load, rest @ ..] = commands.as_slice() else {
        anyhow::bail!("the README has no walk-through: {commands:?}");
    };
    ensure!(demo[0] == "demo" && load[0] == "load", "{demo:?} {load:?}");
    let folder = tempfile::tempdir()?;
    let store = folder.path().join("store");
    let shell = Shell { store: &store };
    let started = Instant::now();
    let free = ["--http-port", "0", "--metrics-port", "0", "--admin-port", "0"];
    let mut server = shell.command(demo);
    let log = std::fs::File::create(folder.path().join("log"))?;
    let server = server.args(free).stdout(Stdio::null()).stderr(log).spawn()?;
    let _server = Background(server);
    wait::until("the demo to be ready", Duration::from_secs(120), || {
        Ok(std::fs::read_to_string(folder.path().join("log"))?.contains("DEMO READY"))
    })?;
    let traffic = shell.command(load).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let _traffic = Background(traffic);
    let outputs = rest.iter().map(|command| shell.run(command)).collect::<Result<Vec<_>>>()?;
    let text = |output: &Output| {
        String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
    };
    let [deployed, promoted, again, rolled_back, audit] = outputs.as_slice() else {
        anyhow::bail!("the walk-through has other commands than the test: {rest:?}");
    };
    ensure!(
        deployed.status.success() && again.status.success(),
        "{}{}",
        text(deployed),
        text(again)
    );
    ensure!(promoted.status.success() && text(promoted).contains("promoted"), "{}", text(promoted));
    ensure!(!rolled_back.status.success(), "{}", text(rolled_back));
    ensure!(text(rolled_back).contains("rolled back with canary"), "{}", text(rolled_back));
    for action in ["rollout_promote", "rollout_rollback"] {
        ensure!(text(audit).contains(action), "{}", text(audit));
    }
    ensure!(started.elapsed() < Duration::from_secs(180), "it took {:?}", started.elapsed());
    Ok(())
}
