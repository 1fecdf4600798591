//! What an endpoint runs: stages, and the operators of their graphs. These
//! types are serialised as they are.

use crate::status::SignatureInfo;
use mortise_compute::{Executable, OperatorInfo, ValueInfo};
use mortise_serve::{Revision, Stage};
use serde::Serialize;

/// What a revision consists of.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The endpoint, or the file of a model that is not deployed.
    pub name: String,
    /// `None` for a model that is not deployed.
    pub version: Option<u64>,
    pub revision: Option<u64>,
    /// Whether it is proven that rows of several requests do not mix.
    pub rows_independent: bool,
    /// In the order in which they run.
    pub stages: Vec<StageInspection>,
}

/// One step of a revision.
#[derive(Clone, Debug, Serialize)]
pub struct StageInspection {
    /// More than one where the graphs of transforms are fused with the model's.
    pub plugins: Vec<String>,
    pub signature: SignatureInfo,
    /// `None` when the plugin is entered for each batch.
    pub graph: Option<GraphInspection>,
}

/// A compiled graph.
#[derive(Clone, Debug, Serialize)]
pub struct GraphInspection {
    pub rows_independent: bool,
    /// Weights and folded constants, packed copies included.
    pub weight_bytes: usize,
    /// Most bytes of values between operators at once, in the runs so far.
    pub arena_bytes: usize,
    pub operators: Vec<OperatorInspection>,
}

/// One operator of a compiled graph.
#[derive(Clone, Debug, Serialize)]
pub struct OperatorInspection {
    /// The node's own name; may be empty.
    pub node: String,
    pub domain: String,
    pub operator: String,
    /// `cpu` or `gpu`.
    pub placement: &'static str,
    /// The model's operators that it stands for; empty where it is one of them.
    pub fused: Vec<String>,
    /// Of weights that no operator before it reads.
    pub weight_bytes: usize,
    pub outputs: Vec<OutputInspection>,
}

/// What is known of an output before a run.
#[derive(Clone, Debug, Serialize)]
pub struct OutputInspection {
    pub datatype: Option<String>,
    /// -1 where inputs decide; `None` when not even the rank is known.
    pub shape: Option<Vec<i64>>,
}

impl Inspection {
    pub fn of_revision(revision: &Revision) -> Self {
        Self {
            name: revision.endpoint().to_owned(),
            version: Some(revision.version()),
            revision: Some(revision.number()),
            rows_independent: revision.rows_independent(),
            stages: revision.stages().iter().map(StageInspection::of_stage).collect(),
        }
    }
}

impl StageInspection {
    pub fn of_stage(stage: &Stage) -> Self {
        Self {
            plugins: stage.plugins().map(str::to_owned).collect(),
            signature: SignatureInfo::from(&stage.signature),
            graph: stage.graph().map(|graph| GraphInspection::of(&**graph.executable())),
        }
    }
}

impl GraphInspection {
    fn of(executable: &dyn Executable) -> Self {
        let footprint = executable.footprint();
        Self {
            rows_independent: executable.rows_independent(),
            weight_bytes: footprint.weight_bytes,
            arena_bytes: footprint.peak_arena_bytes,
            operators: executable.operators().into_iter().map(OperatorInspection::from).collect(),
        }
    }
}

impl From<OperatorInfo> for OperatorInspection {
    fn from(info: OperatorInfo) -> Self {
        let OperatorInfo { node, domain, operator, placement, fused, weight_bytes, outputs } = info;
        let outputs = outputs.into_iter().map(OutputInspection::from).collect();
        Self { node, domain, operator, placement, fused, weight_bytes, outputs }
    }
}

impl From<ValueInfo> for OutputInspection {
    fn from(info: ValueInfo) -> Self {
        Self { datatype: info.dtype.map(|dtype| dtype.to_string()), shape: info.shape }
    }
}
