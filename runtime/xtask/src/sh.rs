//! Running other programs, with progress lines that say how long they took.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{self, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A program to run; a thin layer over [`process::Command`] that keeps a
/// printable form and fails with it.
pub(crate) struct Command {
    inner: process::Command,
    shown: String,
}

impl Command {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        let name = Path::new(program).file_name().unwrap_or(program);
        Self { inner: process::Command::new(program), shown: name.display().to_string() }
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        for arg in args {
            self.shown.push(' ');
            self.shown.push_str(&arg.as_ref().to_string_lossy());
            self.inner.arg(arg);
        }
        self
    }

    pub(crate) fn current_dir(mut self, folder: &Path) -> Self {
        self.inner.current_dir(folder);
        self
    }

    /// Without the variables whose names begin so.
    pub(crate) fn without_env(mut self, prefix: &str) -> Self {
        let names = std::env::vars_os().map(|(name, _)| name);
        for name in names.filter(|name| name.to_string_lossy().starts_with(prefix)) {
            self.inner.env_remove(name);
        }
        self
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.inner.env(key, value);
        self
    }

    pub(crate) fn envs(self, variables: Vec<(String, String)>) -> Self {
        variables.into_iter().fold(self, |command, (key, value)| command.env(&key, value))
    }

    /// Runs with inherited output; a failure status is an error.
    pub(crate) fn run(mut self) -> Result<()> {
        let status = self.inner.status().with_context(|| self.cannot_start())?;
        if !status.success() {
            bail!("`{}` failed ({status})", self.shown);
        }
        Ok(())
    }

    /// Runs and returns standard output, trimmed.
    pub(crate) fn output(mut self) -> Result<String> {
        let output = self.inner.output().with_context(|| self.cannot_start())?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("`{}` failed ({}): {}", self.shown, output.status, text.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs, hands each line of standard output to `line`, and says whether it
    /// succeeded.
    pub(crate) fn stream(mut self, mut line: impl FnMut(&str)) -> Result<bool> {
        let mut child =
            self.inner.stdout(Stdio::piped()).spawn().with_context(|| self.cannot_start())?;
        let stdout = child.stdout.take().context("standard output was asked for")?;
        for text in BufReader::new(stdout).lines() {
            line(&text?);
        }
        Ok(child.wait()?.success())
    }

    fn cannot_start(&self) -> String {
        format!("cannot start `{}`", self.shown)
    }
}

/// Says what starts, runs it, and says how long it took.
pub(crate) fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("==> {what}");
    let start = Instant::now();
    let result = work().with_context(|| what.to_owned())?;
    eprintln!("    {what}: done in {}", seconds(start.elapsed()));
    Ok(result)
}

pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
