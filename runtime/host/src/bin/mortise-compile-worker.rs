//! The compiling child process by itself. The server starts its own binary
//! instead; the tests and benchmarks of the host start this one.

fn main() -> std::process::ExitCode {
    mortise_host::compile_worker_main()
}
