//! `mortise-fuzz`: mutated inputs for the decoders of the protocol over HTTP and
//! gRPC, for the ONNX plugin's parser, and for deployments of a running server. Nothing may
//! panic, hang, take more memory than allowed, or end the server. The seed is
//! printed; the same seed makes the same inputs.

mod mutate;
mod seeds;

use std::collections::HashSet;
use std::panic;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use mortise_tests::{Deployment, Server};

use crate::mutate::Mutator;

#[derive(Parser)]
struct Args {
    /// Seconds for each of the four targets.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Seed of all inputs; chosen when left out.
    #[arg(long)]
    seed: Option<u64>,
}

/// An input that takes longer than this is a finding.
const SLOW: Duration = Duration::from_secs(2);

/// A decoder that allocates what an input claims runs into this.
const MAX_ADDRESS_SPACE_BYTES: u64 = 8 << 30;

fn main() -> Result<()> {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    let limit = Duration::from_secs(args.seconds);
    // Panics are findings, printed below with the input; not twice.
    panic::set_hook(Box::new(|_| {}));
    // First: a server inherits the limit that the rest of this process gets.
    let deploy = deployments(seeds::onnx()?, seed, limit);
    limit_memory()?;
    let wire = |input: &[u8]| {
        mortise_wire::fuzz_decode(input);
        None
    };
    let grpc = |input: &[u8]| {
        mortise_grpc_proto::fuzz_decode(input);
        None
    };
    let onnx = |input: &[u8]| {
        Some(match plugin_onnx::fuzz(input) {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.to_string(),
        })
    };
    let results = [
        ("wire", in_process("wire", seeds::wire(), seed, limit, wire)),
        ("grpc", in_process("grpc", seeds::grpc(), seed, limit, grpc)),
        ("onnx", in_process("onnx", seeds::onnx()?, seed, limit, onnx)),
        ("deploy", deploy),
    ];
    for (name, result) in &results {
        match result {
            Ok(count) => println!("{name}: {count} inputs, no finding"),
            Err(error) => println!("{name}: {error:#}"),
        }
    }
    let failed = results.iter().filter(|(_, result)| result.is_err()).count();
    println!("{} passed, {failed} failed", results.len() - failed);
    ensure!(failed == 0, "there are findings");
    Ok(())
}

fn limit_memory() -> Result<()> {
    let limit =
        libc::rlimit { rlim_cur: MAX_ADDRESS_SPACE_BYTES, rlim_max: MAX_ADDRESS_SPACE_BYTES };
    // SAFETY: passes a valid structure; lowers a limit of this process.
    let status = unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) };
    ensure!(status == 0, "cannot limit memory: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Calls `target` with mutated inputs until the time is over; returns how many.
/// What the target says stands in for coverage: inputs that make it say
/// something new are mutated further.
fn in_process(
    name: &str,
    seeds: Vec<Vec<u8>>,
    seed: u64,
    limit: Duration,
    target: impl Fn(&[u8]) -> Option<String> + panic::RefUnwindSafe,
) -> Result<u64> {
    let mut mutator = Mutator::new(seeds, seed);
    let mut seen = HashSet::new();
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < limit {
        let input = mutator.next();
        let begun = Instant::now();
        let said = panic::catch_unwind(|| target(&input));
        ensure!(said.is_ok(), "{name}: panic at input {count}: {}", show(&input));
        ensure!(begun.elapsed() < SLOW, "{name}: slow at input {count}: {}", show(&input));
        if let Ok(Some(said)) = said
            && seen.insert(without_numbers(&said))
        {
            mutator.keep(input);
        }
        count += 1;
    }
    println!("{name}: {} different answers", seen.len());
    Ok(count)
}

/// Deploys mutated models. Each is refused with a reason or goes live, and the
/// server keeps running.
fn deployments(seeds: Vec<Vec<u8>>, seed: u64, limit: Duration) -> Result<u64> {
    let mut mutator = Mutator::new(seeds, seed);
    let mut seen = HashSet::new();
    let mut server = Server::start()?;
    let mut admin = server.admin()?;
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < limit {
        let input = mutator.next();
        let deployment = Deployment::onnx(input.clone());
        let answer = admin.try_deploy("fuzz", &deployment, &mut |_| {});
        ensure!(server.is_running()?, "the server ended at input {count}: {}", show(&input));
        match answer {
            Ok(Ok(_)) => {}
            Ok(Err(refusal)) => {
                ensure!(!refusal.message.is_empty(), "refused without a reason: {}", show(&input));
                let internal = refusal.status == 500 && refusal.message.contains("broke down");
                ensure!(!internal, "{refusal} at input {count}: {}", show(&input));
                if seen.insert(without_numbers(&refusal.message)) {
                    mutator.keep(input);
                }
            }
            Err(error) => anyhow::bail!("{error:#} at input {count}: {}", show(&input)),
        }
        count += 1;
    }
    let ready = server.client().get("/v2/health/ready")?.status;
    ensure!(ready == 200, "the server is not ready afterwards");
    println!("deploy: {} different refusals", seen.len());
    Ok(count)
}

/// Offsets and sizes differ from input to input; the words tell paths apart.
fn without_numbers(text: &str) -> String {
    text.chars().filter(|letter| letter.is_ascii_alphabetic() || *letter == ' ').take(80).collect()
}

fn show(input: &[u8]) -> String {
    const SHOWN: usize = 400;
    let hex: String = input.iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect();
    format!("{} bytes, {hex}{}", input.len(), if input.len() > SHOWN { "…" } else { "" })
}
