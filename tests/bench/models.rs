//! `bench models`: whole models beside onnxruntime, in one run, on the same
//! pinned cores, taking turns.

pub(crate) mod native;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use mortise_compute::{CpuDevice, CpuOptions, Executable};
use mortise_tests::{paths, stats, wait};
use mortise_types::{DType, RunControl, Tensor};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::report;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Cores that each side may use, 1 or 2; both are pinned to them.
    #[arg(long, default_value_t = 1)]
    cores: usize,
    /// Turns that each side takes on each model.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Only models whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Leave onnxruntime out: for a profiler.
    #[arg(long)]
    alone: bool,
}

/// A model and one input for it, as the script wrote them down.
#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) file: String,
    pub(crate) batch: usize,
    dtype: String,
    inputs: Vec<Input>,
}

#[derive(Deserialize)]
struct Input {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    file: String,
}

/// About how long one turn lasts.
pub(crate) const TURN: Duration = Duration::from_millis(250);

/// Between two turns: threads of either side that spin come to rest.
pub(crate) const PAUSE: Duration = Duration::from_millis(30);

pub(crate) fn run(args: &Args) -> Result<()> {
    pin(args.cores)?;
    let folder = made()?;
    let cases = cases(&folder)?;
    let mut peer = (!args.alone).then(|| Peer::start(&folder, args.cores)).transpose()?;
    let device = CpuDevice::new(CpuOptions { threads: args.cores });
    let mut rows = Vec::new();
    println!("model                      batch  dtype   ours ms    ort ms  ratio   differs");
    for (index, case) in cases.iter().enumerate() {
        let wanted = args.only.as_ref().is_none_or(|only| case.name.contains(only.as_str()));
        if wanted {
            let row = measure(&device, &folder, case, index, peer.as_mut(), args.rounds)?;
            print_row(&row);
            rows.push(row);
        }
    }
    let versions = peer.as_ref().map_or(Value::Null, |peer| peer.versions.clone());
    report::print(json!({"cores": args.cores, "models": rows}), versions);
    Ok(())
}

/// Pins this process and its children to the first cores it may use.
pub(crate) fn pin(cores: usize) -> Result<()> {
    ensure!(cores > 0, "--cores must be at least 1");
    // SAFETY: the sets are plain data, and the calls get their size.
    unsafe {
        let size = size_of::<libc::cpu_set_t>();
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        ensure!(libc::sched_getaffinity(0, size, &mut allowed) == 0, "cannot read the affinity");
        let mut chosen: libc::cpu_set_t = std::mem::zeroed();
        let usable = (0..libc::CPU_SETSIZE as usize).filter(|&cpu| libc::CPU_ISSET(cpu, &allowed));
        usable.take(cores).for_each(|cpu| libc::CPU_SET(cpu, &mut chosen));
        let count = libc::CPU_COUNT(&chosen) as usize;
        ensure!(count == cores, "{cores} cores wanted, {count} there are");
        ensure!(libc::sched_setaffinity(0, size, &chosen) == 0, "cannot pin to {cores} cores");
    }
    Ok(())
}

/// The folder of the models, made by the script when it is missing or older.
pub(crate) fn made() -> Result<PathBuf> {
    let folder = match std::env::var_os("MORTISE_BENCH_MODELS") {
        Some(folder) => PathBuf::from(folder),
        None => paths::root().join("target/bench-models"),
    };
    let script = script();
    let age = |path: &Path| path.metadata().and_then(|data| data.modified());
    let fresh = age(&folder.join("manifest.json"))
        .is_ok_and(|made| age(&script).is_ok_and(|written| written <= made));
    if !fresh {
        println!("writing models with random weights to {}", folder.display());
        let status =
            python().arg(&script).arg("make").arg(&folder).stdout(Stdio::null()).status()?;
        ensure!(status.success(), "{} failed", script.display());
    }
    Ok(folder)
}

/// The models of a folder.
pub(crate) fn cases(folder: &Path) -> Result<Vec<Case>> {
    let manifest = std::fs::read(folder.join("manifest.json"))?;
    Ok(serde_json::from_slice(&manifest)?)
}

fn script() -> PathBuf {
    paths::root().join("tests/bench/models.py")
}

fn python() -> Command {
    Command::new(std::env::var_os("MORTISE_BENCH_PYTHON").unwrap_or_else(|| "python3".into()))
}

fn measure(
    device: &CpuDevice,
    folder: &Path,
    case: &Case,
    index: usize,
    mut peer: Option<&mut Peer>,
    rounds: usize,
) -> Result<Value> {
    let ours = Ours::new(device, folder, case)?;
    let one = ours.turn(2)?[1];
    let theirs = peer.as_mut().map(|peer| peer.turn(index, 2)).transpose()?;
    let differs = theirs.as_ref().map(|turn| ours.differs(folder, &turn.outputs)).transpose()?;
    let count = |seconds: f64| (TURN.as_secs_f64() / seconds).clamp(2.0, 20_000.0) as usize;
    let their_count = theirs.map(|turn| count(turn.seconds[1]));
    let (mut mine, mut other) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        mine.push(stats::median(ours.turn(count(one))?));
        wait::pass(PAUSE);
        if let (Some(peer), Some(count)) = (peer.as_mut(), their_count) {
            other.push(stats::median(peer.turn(index, count)?.seconds));
            wait::pass(PAUSE);
        }
    }
    let (mine, other) = (stats::median(mine) * 1e3, stats::median(other) * 1e3);
    let known = peer.is_some();
    Ok(json!({
        "name": case.name, "batch": case.batch, "dtype": case.dtype, "ours_ms": mine,
        "ort_ms": known.then_some(other), "ratio": known.then(|| mine / other),
        "max_abs_difference": differs,
    }))
}

fn print_row(row: &Value) {
    let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
    println!(
        "{:<26} {:>5}  {:<5} {:>9.4} {:>9.4} {:>6.3} {:>9.1e}",
        row["name"].as_str().unwrap_or_default(),
        row["batch"],
        row["dtype"].as_str().unwrap_or_default(),
        number("ours_ms"),
        number("ort_ms"),
        number("ratio"),
        number("max_abs_difference"),
    );
}

/// A compiled model with its inputs.
pub(crate) struct Ours {
    exe: Arc<dyn Executable>,
    inputs: Vec<Tensor>,
}

impl Ours {
    fn new(device: &CpuDevice, folder: &Path, case: &Case) -> Result<Self> {
        Self::of(native::compile(device, &folder.join(&case.file))?, folder, case)
    }

    /// A model that was compiled in another way.
    pub(crate) fn of(exe: Arc<dyn Executable>, folder: &Path, case: &Case) -> Result<Self> {
        let named = |name: &str| case.inputs.iter().find(|input| input.name == name);
        let inputs = exe
            .signature()
            .inputs
            .iter()
            .map(|spec| {
                let input = named(&spec.name).with_context(|| format!("no input {}", spec.name))?;
                read(folder, input)
            })
            .collect::<Result<_>>()?;
        Ok(Self { exe, inputs })
    }

    pub(crate) fn run(&self) -> Result<Vec<Tensor>> {
        let ticket = self.exe.execute(self.inputs.clone(), &RunControl::unbounded());
        ticket.and_then(mortise_compute::Ticket::wait).map_err(|error| anyhow!("{error}"))
    }

    /// Seconds of each of `count` runs.
    pub(crate) fn turn(&self, count: usize) -> Result<Vec<f64>> {
        let mut seconds = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            drop(self.run()?);
            seconds.push(start.elapsed().as_secs_f64());
        }
        Ok(seconds)
    }

    /// The largest difference between our outputs and the peer's.
    fn differs(&self, folder: &Path, files: &[Option<String>]) -> Result<f64> {
        let outputs = self.run()?;
        let mut largest = 0.0f64;
        for (output, file) in outputs.iter().zip(files) {
            let Some(file) = file else { continue };
            let bytes = std::fs::read(folder.join(file))?;
            let theirs =
                bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap_or_default()));
            let ours = as_f64(output)?;
            ensure!(
                ours.len() == bytes.len() / 8,
                "{output:?} is {} numbers there",
                bytes.len() / 8
            );
            largest = ours.iter().zip(theirs).fold(largest, |top, (a, b)| top.max((a - b).abs()));
        }
        Ok(largest)
    }
}

pub(crate) fn as_f64(tensor: &Tensor) -> Result<Vec<f64>> {
    match tensor.dtype() {
        DType::F32 => Ok(tensor.as_slice::<f32>()?.iter().map(|&x| f64::from(x)).collect()),
        DType::I64 => Ok(tensor.as_slice::<i64>()?.iter().map(|&x| x as f64).collect()),
        dtype => Err(anyhow!("outputs of {dtype} are not compared")),
    }
}

fn read(folder: &Path, input: &Input) -> Result<Tensor> {
    let dtype = match input.dtype.as_str() {
        "float32" => DType::F32,
        "int64" => DType::I64,
        other => return Err(anyhow!("inputs of {other} are not measured")),
    };
    let bytes = std::fs::read(folder.join(&input.file))?;
    Tensor::from_bytes(dtype, &input.shape, bytes.into()).map_err(|error| anyhow!("{error}"))
}

/// onnxruntime in a process of its own, driven line by line.
struct Peer {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    versions: Value,
}

#[derive(Deserialize)]
struct Turn {
    seconds: Vec<f64>,
    outputs: Vec<Option<String>>,
}

impl Peer {
    fn start(folder: &Path, threads: usize) -> Result<Self> {
        let mut process = python()
            .arg(script())
            .arg("serve")
            .args([folder])
            .arg(threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start onnxruntime")?;
        let requests = process.stdin.take().context("a pipe")?;
        let mut answers = BufReader::new(process.stdout.take().context("a pipe")?);
        let mut line = String::new();
        answers.read_line(&mut line)?;
        let versions = serde_json::from_str(&line).context("onnxruntime did not start")?;
        Ok(Self { process, requests, answers, versions })
    }

    fn turn(&mut self, index: usize, rounds: usize) -> Result<Turn> {
        writeln!(self.requests, "{index} {rounds}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("onnxruntime answered {line:?}"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
