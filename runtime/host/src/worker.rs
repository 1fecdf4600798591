use std::process::ExitCode;

/// Body of the compiling child process: reads a component from standard
/// input, writes the artifact to standard output, and reports what is wrong
/// on standard error.
pub fn compile_worker_main() -> ExitCode {
    ExitCode::FAILURE
}
