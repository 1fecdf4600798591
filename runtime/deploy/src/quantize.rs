//! `--quantize`: a version whose weights are put into fewer bits when it is
//! built. The floats are built once beside it, to find ranges of activations
//! and to compare the answers with; a restart builds from what was stored.

use crate::generate;
use crate::request::{DeployRequest, PluginRef};
use crate::selftest::difference::Difference;
use crate::selftest::{Named, sample};
use crate::status::AssetInfo;
use mortise_graph::{Left, Precision};
use mortise_host::GraphRunner;
use mortise_serve::{Baseline, GraphRanges, QuantSummary, Registry, Revision};
use mortise_types::{Bytes, Error, Result, RunControl};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Instant;

/// Made-up requests to compare on, where a deployment brings no samples.
const GENERATED: u64 = 5;

/// What their open dimensions are tried at, for models that refuse the smallest.
const SIZES: [usize; 3] = [1, 8, 64];

/// What weights become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuantizeMode {
    Int8,
    Int8Static,
    Int4,
    F16,
}

impl QuantizeMode {
    fn precision(self) -> Precision {
        match self {
            Self::Int8 => Precision::Int8,
            Self::Int8Static => Precision::Int8Static,
            Self::Int4 => Precision::Int4,
            Self::F16 => Precision::F16,
        }
    }

    /// `int8-static`, as in JSON and on the command line.
    pub fn name(self) -> &'static str {
        self.precision().name()
    }
}

/// How a version was quantised, as it is stored with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizeInfo {
    pub mode: QuantizeMode,
    /// The samples that ranges and differences were found on.
    pub samples: Option<AssetInfo>,
    /// The largest difference that was allowed.
    pub max_error: Option<f64>,
    /// Of activations, by the digest of their graph, for `int8-static`.
    #[serde(default, skip_serializing_if = "GraphRanges::is_empty")]
    pub ranges: GraphRanges,
    /// `None` until the version has been built.
    pub report: Option<QuantizeReport>,
}

/// What quantising did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QuantizeReport {
    /// Matrix products and embedding tables whose weights were replaced.
    pub products: usize,
    pub tables: usize,
    /// Weights that stay in floats, and why.
    pub left: Vec<LeftInfo>,
    /// Bytes of all weights and constants.
    pub weight_bytes_before: u64,
    pub weight_bytes_after: u64,
    /// Bytes that the device holds for them, in its own layout.
    pub device_bytes_before: u64,
    pub device_bytes_after: u64,
    /// Whether the requests compared were made up, for lack of samples.
    pub generated: bool,
    /// What the answers were compared on.
    pub difference: Difference,
}

/// Nodes of one operator that stay in floats for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftInfo {
    pub operator: String,
    pub reason: String,
    pub count: usize,
    pub bytes: u64,
}

impl From<&Left> for LeftInfo {
    fn from(left: &Left) -> Self {
        let Left { operator, reason, count, bytes } = left.clone();
        Self { operator, reason: reason.to_string(), count, bytes }
    }
}

/// # Errors
/// `InvalidInput` for options that do not go together.
pub(crate) fn check_request(request: &DeployRequest) -> Result<()> {
    let Some(quantize) = &request.quantize else { return Ok(()) };
    let other = match &request.plugin {
        PluginRef::Ensemble { .. } => Some("an ensemble: quantize the models that it names"),
        PluginRef::Upstream { .. } => Some("a model of another server: quantize it there"),
        PluginRef::Builtin(_) | PluginRef::Uploaded { .. } => None,
    };
    if let Some(other) = other {
        return Err(Error::unsupported(format!("--quantize cannot change {other}")));
    }
    if quantize.mode == QuantizeMode::Int8Static && quantize.samples.is_none() {
        return Err(Error::invalid(
            "--quantize int8-static finds the ranges of activations on samples: pass --calibrate \
             FILE.csv, or use --quantize int8, which needs none",
        ));
    }
    match quantize.max_error {
        Some(limit) if !(limit.is_finite() && limit >= 0.0) => {
            Err(Error::invalid(format!("--max-quantize-error {limit} is no limit: use 0 or more")))
        }
        _ => Ok(()),
    }
}

/// `, quantized to int8,` for the audit log.
pub(crate) fn note(info: Option<&QuantizeInfo>) -> String {
    let Some(info) = info else { return String::new() };
    let sizes = info.report.as_ref().map_or_else(String::new, |report| {
        let (before, after) = (report.weight_bytes_before, report.weight_bytes_after);
        let error = report.difference.max_abs_error;
        format!(" ({before} to {after} bytes, outputs within {error:.3e})")
    });
    format!(", quantized to {}{sizes},", info.mode.name())
}

/// Builds a revision whose model's graphs are prepared by this runner.
pub(crate) type Build<'a> = &'a dyn Fn(Arc<dyn GraphRunner>) -> Result<Revision>;

/// Builds a version that went through this before.
///
/// # Errors
/// What building reports.
pub(crate) fn rebuild(
    info: &QuantizeInfo,
    registry: &Registry,
    build: Build<'_>,
) -> Result<Revision> {
    build(registry.quantiser(info.mode.precision(), info.ranges.clone()))
}

/// Builds a version for the first time, with and without quantising, and
/// compares the two. Ranges and report are written into `info`.
///
/// # Errors
/// `Unsupported` when there is nothing to quantise, `InvalidInput` when samples
/// do not fit or answers differ by more than is allowed, and what building
/// reports.
pub(crate) fn first_build(
    info: &mut QuantizeInfo,
    registry: &Registry,
    samples: Option<(&str, Bytes)>,
    deadline: Instant,
    build: Build<'_>,
) -> Result<Revision> {
    let control = RunControl::new(Some(deadline), RunControl::DEFAULT_LOOP_ITERATIONS);
    let observes = info.mode == QuantizeMode::Int8Static;
    let baseline = registry.baseline(observes);
    let floats = build(baseline.clone())?;
    if baseline.graph_count() == 0 {
        let plugin = floats.model().map_or("", |model| &model.name);
        return Err(Error::unsupported(format!(
            "plugin \"{plugin}\" builds no graph when it is loaded, it computes by itself: there is \
             nothing to quantize; deploy it without --quantize"
        )));
    }
    let inputs = match samples {
        Some((name, bytes)) => sample::read(name, &bytes, &floats.signature().inputs)?,
        None => generated(&floats, &control)?,
    };
    if observes {
        for (index, inputs) in inputs.iter().enumerate() {
            run(&floats, inputs, index, &control)?;
        }
        info.ranges = baseline.ranges();
    }
    let quantiser = registry.quantiser(info.mode.precision(), info.ranges.clone());
    let quantised = build(quantiser.clone())?;
    let summary = quantiser.summary();
    check_something(info.mode, &summary)?;
    let mut difference = Difference::default();
    for (index, inputs) in inputs.iter().enumerate() {
        let want = run(&floats, inputs, index, &control)?;
        let got = run(&quantised, inputs, index, &control)?;
        difference.add(&want, &got)?;
    }
    let report = report(&baseline, &summary, difference, info.samples.is_none());
    check_difference(info, &report)?;
    info.report = Some(report);
    Ok(quantised)
}

fn run(revision: &Revision, inputs: &Named, index: usize, control: &RunControl) -> Result<Named> {
    let outputs = revision.run_blocking(inputs.clone(), control);
    outputs.map_err(|error| error.context(format_args!("sample {}", index + 1)))
}

/// Requests of the smallest size that the model takes.
fn generated(revision: &Revision, control: &RunControl) -> Result<Vec<Named>> {
    let mut refused = None;
    for size in SIZES {
        let rows = (1..=GENERATED).map(|seed| generate::row(revision, seed, size));
        let Some(rows) = rows.collect::<Option<Vec<_>>>() else { continue };
        match rows.iter().try_for_each(|row| revision.run_blocking(row.clone(), control).map(drop))
        {
            Ok(()) => return Ok(rows),
            Err(error) => refused = Some(error),
        }
    }
    let reason = refused.map_or_else(String::new, |error| format!(" ({error})"));
    Err(Error::invalid(format!(
        "the model takes no made-up inputs{reason}: pass --calibrate FILE with some that it takes"
    )))
}

fn check_something(mode: QuantizeMode, summary: &QuantSummary) -> Result<()> {
    let report = &summary.report;
    if report.products + report.tables > 0 {
        return Ok(());
    }
    let why = match report.left.as_slice() {
        [] => "no FP32 weight of 256 numbers or more is in its graph".to_string(),
        left => left.iter().map(describe).collect::<Vec<_>>().join("; "),
    };
    Err(Error::unsupported(format!(
        "nothing can be quantized to {}: {why}; deploy it without --quantize",
        mode.name()
    )))
}

/// `53 Conv: weights of convolutions stay FP32`
fn describe(left: &Left) -> String {
    format!("{} {}: {}", left.count, left.operator, left.reason)
}

fn report(
    baseline: &Baseline,
    summary: &QuantSummary,
    difference: Difference,
    generated: bool,
) -> QuantizeReport {
    let report = &summary.report;
    QuantizeReport {
        products: report.products,
        tables: report.tables,
        left: report.left.iter().map(LeftInfo::from).collect(),
        weight_bytes_before: report.float_bytes,
        weight_bytes_after: report.bytes,
        device_bytes_before: baseline.device_bytes(),
        device_bytes_after: summary.device_bytes,
        generated,
        difference,
    }
}

fn check_difference(info: &QuantizeInfo, report: &QuantizeReport) -> Result<()> {
    let Some(limit) = info.max_error else { return Ok(()) };
    let difference = &report.difference;
    // Written so that NaN fails.
    if difference.max_abs_error <= limit {
        return Ok(());
    }
    let finer = match info.mode {
        QuantizeMode::Int4 => "use int8 or f16",
        QuantizeMode::Int8 | QuantizeMode::Int8Static => "use f16",
        QuantizeMode::F16 => "deploy it without --quantize",
    };
    Err(Error::invalid(format!(
        "quantized to {}, the outputs differ by up to {:.3e} (on average {:.3e}) in {} samples, more \
         than --max-quantize-error {limit}: {finer}, or allow more",
        info.mode.name(),
        difference.max_abs_error,
        difference.mean_abs_error,
        difference.samples,
    )))
}
