//! Prints what crossing into a plugin costs, as one JSON object. Takes the
//! path of the component `measure` of `tests/guests`. With `worker` as its only
//! argument it is the compiling child process.

use mortise_host::{HostConfig, Measurements, WorkerCommand, compile_worker_main, measure};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let argument = std::env::args().nth(1);
    match argument.as_deref() {
        Some("worker") => compile_worker_main(),
        Some(component) => report(component),
        None => {
            eprintln!("usage: mortise-bench-plugin COMPONENT");
            ExitCode::FAILURE
        }
    }
}

fn report(component: &str) -> ExitCode {
    match run(component) {
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

fn run(component: &str) -> anyhow::Result<Measurements> {
    let program = std::env::current_exe()?;
    let worker = WorkerCommand { program, args: vec!["worker".into()] };
    let scratch =
        Scratch(std::env::temp_dir().join(format!("mortise-bench-{}", std::process::id())));
    std::fs::create_dir_all(&scratch.0)?;
    let config = HostConfig::new(scratch.0.join("warm"), worker);
    Ok(measure(&config, std::fs::read(component)?.into(), &scratch.0)?)
}

/// A folder that is removed at the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
