//! Prints what crossing into a plugin costs, as one JSON object. Takes the
//! folder of the components of `tests/guests`; without it, looks in
//! `MORTISE_GUESTS_DIR` or `target/guests`. With `worker` as its only argument
//! it is the compiling child process.

use anyhow::Context;
use bytes::Bytes;
use mortise_host::{
    HostConfig, Measurements, Subjects, WorkerCommand, compile_worker_main, measure,
};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args_os().nth(1) {
        Some(argument) if argument == "worker" => compile_worker_main(),
        Some(folder) => report(Path::new(&folder)),
        None => {
            let folder = std::env::var_os("MORTISE_GUESTS_DIR");
            let folder = folder.map_or_else(|| PathBuf::from("target/guests"), PathBuf::from);
            report(&folder)
        }
    }
}

fn report(folder: &Path) -> ExitCode {
    match run(folder) {
        Ok(m) => {
            println!(
                "{{\"call_us\":{:.3},\"call_tensor_us\":{:.3},\"list_f32_4096_us\":{:.3},\
                 \"instantiate_us\":{:.2},\"load_cached_us\":{:.1},\"compile_ms\":{:.1}}}",
                m.call_us,
                m.call_tensor_us,
                m.list_f32_4096_us,
                m.instantiate_us,
                m.load_cached_us,
                m.compile_ms
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(folder: &Path) -> anyhow::Result<Measurements> {
    let component = |name: &str| -> anyhow::Result<Bytes> {
        let path = folder.join(name);
        let hint =
            || format!("cannot read {}; `cargo xtask bench plugin` builds it", path.display());
        Ok(std::fs::read(&path).with_context(hint)?.into())
    };
    let subjects = Subjects { calls: component("measure.wasm")?, small: component("apply.wasm")? };
    let program = std::env::current_exe()?;
    let worker = WorkerCommand { program, args: vec!["worker".into()] };
    let scratch =
        Scratch(std::env::temp_dir().join(format!("mortise-bench-{}", std::process::id())));
    std::fs::create_dir_all(&scratch.0)?;
    let config = HostConfig::new(scratch.0.join("warm"), worker);
    Ok(measure(&config, subjects, &scratch.0)?)
}

/// A folder that is removed at the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
