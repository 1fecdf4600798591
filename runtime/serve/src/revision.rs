use crate::batch::Batcher;
use crate::cache::ResponseCache;
use crate::ensemble::Ensemble;
use crate::in_place::InPlace;
use crate::options::ServingOptions;
use crate::service_time::ServiceTime;
use crate::shadow::CopyQueue;
use crate::stage::Stage;
use crate::state::State;
use crate::upstream::Upstream;
use crate::version_stats::{VersionStats, VersionStatsSnapshot};
use mortise_host::PluginHealth;
use mortise_types::{
    Error, ErrorKind, Result, RunControl, Signature, Tensor, TensorSpec, VARIABLE,
};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

/// Everything that answers for an endpoint between two deployments: immutable,
/// taken whole by each request, replaced whole by the next deployment.
pub struct Revision {
    parts: RevisionParts,
    /// What clients send and get.
    signature: Signature,
    /// What a run takes and gives: the same with the state of sequences.
    run_signature: Signature,
    state: State,
    /// Position of each input that clients send, in the run's signature.
    input_index: HashMap<String, usize>,
    /// One for each stage.
    steps: Vec<Step>,
    slot_count: usize,
    /// The slot of each input of the signature.
    input_slots: Vec<usize>,
    service_time: Arc<ServiceTime>,
    pub(crate) batcher: Batcher,
    pub(crate) stats: VersionStats,
    /// A model with state answers no two requests alike, and has none.
    pub(crate) cache: Option<ResponseCache>,
    /// Requests to other versions that this one runs as well.
    pub(crate) copies: Arc<CopyQueue>,
    /// Whether requests may run where they arrive.
    pub(crate) in_place: InPlace,
    /// When it was replaced.
    retired: OnceLock<Instant>,
}

/// What a revision is made of.
pub struct RevisionParts {
    pub endpoint: String,
    /// Counts the revisions of the endpoint; never used twice.
    pub number: u64,
    /// What clients name in `/versions/{v}`.
    pub version: u64,
    /// Transforms in the order they run, then the model.
    pub stages: Vec<Stage>,
    pub options: ServingOptions,
    pub created: SystemTime,
}

/// What came of a run, and its time.
pub(crate) struct Ran {
    pub(crate) outputs: Result<Vec<Tensor>>,
    pub(crate) took: Duration,
    /// The part of `took` before the model.
    pub(crate) transforms: Duration,
}

/// How one stage is connected to what ran before it.
struct Step {
    inputs: Vec<Take>,
    /// The slots of the outputs; empty for the last stage, whose outputs are
    /// those of the revision.
    outputs: Vec<usize>,
}

/// A read of a slot; the last one takes the tensor, so that kernels may reuse
/// its memory.
struct Take {
    slot: usize,
    is_last: bool,
}

impl Revision {
    /// Connects the stages by the names of their tensors. What a stage takes
    /// and no earlier stage gives becomes an input of the revision.
    ///
    /// # Errors
    /// When there is no stage, dtypes or shapes do not fit, or a transform
    /// gives nothing that a later stage takes.
    pub fn new(parts: RevisionParts) -> Result<Self> {
        let wiring = Wiring::of(&parts.stages)?;
        let outputs = match parts.stages.last() {
            Some(stage) => stage.signature.outputs.clone(),
            None => return Err(Error::invalid("a revision needs a model")),
        };
        let run_signature = Signature { inputs: wiring.inputs, outputs };
        let state = State::new(&run_signature, &parts.options.sequence.state)?;
        let names = run_signature.inputs.iter().enumerate();
        let names = names.filter(|(index, _)| !state.has_input(*index));
        let service_time = Arc::new(ServiceTime::default());
        let cache = parts.options.cache.filter(|_| state.is_empty());
        Ok(Self {
            input_index: names.map(|(index, spec)| (spec.name.clone(), index)).collect(),
            signature: state.public(&run_signature),
            run_signature,
            state,
            cache: cache.map(|options| ResponseCache::new(options.max_bytes)),
            copies: Arc::default(),
            in_place: InPlace::new(parts.stages.iter().all(Stage::can_be_brief)),
            retired: OnceLock::new(),
            steps: wiring.steps,
            slot_count: wiring.slot_count,
            input_slots: wiring.input_slots,
            batcher: Batcher::new(parts.options.batching.clone(), service_time.clone()),
            service_time,
            stats: VersionStats::default(),
            parts,
        })
    }

    /// Runs named inputs through every stage on this thread: the same path
    /// that requests take, for self-tests and warm-up before publication.
    ///
    /// # Errors
    /// When the inputs do not fit the signature, or a stage fails.
    pub fn run_blocking(
        &self,
        inputs: Vec<(String, Tensor)>,
        control: &RunControl,
    ) -> Result<Vec<(String, Tensor)>> {
        let outputs = self.run(self.bind(inputs)?, control).outputs?;
        Ok(self.name_outputs(outputs))
    }

    pub fn endpoint(&self) -> &str {
        &self.parts.endpoint
    }

    pub fn number(&self) -> u64 {
        self.parts.number
    }

    pub fn version(&self) -> u64 {
        self.parts.version
    }

    pub fn created(&self) -> SystemTime {
        self.parts.created
    }

    /// The named tensors that requests bring and get.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Transforms in the order they run, then the model.
    pub fn stages(&self) -> &[Stage] {
        &self.parts.stages
    }

    /// The stage that gives the answer.
    pub fn model(&self) -> Option<&Stage> {
        self.parts.stages.last()
    }

    /// `true` when a plugin is entered for each request.
    pub fn is_custom(&self) -> bool {
        self.parts.stages.iter().any(Stage::is_custom)
    }

    /// Whether it is proven that rows of several requests do not mix: every
    /// stage is a graph of which the device says so.
    pub fn rows_independent(&self) -> bool {
        let varies = |spec: &TensorSpec| spec.shape.first() == Some(&VARIABLE);
        self.parts.stages.iter().all(Stage::rows_independent)
            && self.run_signature.inputs.iter().all(varies)
            && !self.run_signature.inputs.is_empty()
    }

    /// Lets requests be merged from now on, if the version wants that and rows
    /// do not mix. For whoever has compared rows together with rows alone.
    pub fn allow_merging(&self) {
        if self.rows_independent() {
            self.batcher.allow_merging();
        }
    }

    /// The ensemble that answers, when it alone does.
    pub(crate) fn ensemble(&self) -> Option<&Ensemble> {
        match self.parts.stages.as_slice() {
            [stage] => stage.as_ensemble(),
            _ => None,
        }
    }

    /// The other server that answers, when it alone does.
    pub(crate) fn upstream(&self) -> Option<&dyn Upstream> {
        match self.parts.stages.as_slice() {
            [stage] => stage.as_upstream(),
            _ => None,
        }
    }

    /// Tensors that the host keeps between the requests of a sequence.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// What a run takes and gives, the state of sequences included.
    pub(crate) fn run_signature(&self) -> &Signature {
        &self.run_signature
    }

    pub(crate) fn retire(&self, now: Instant) {
        // A revision that comes back is built anew: it is replaced once.
        let _ = self.retired.set(now);
    }

    pub(crate) fn retired(&self) -> Option<Instant> {
        self.retired.get().copied()
    }

    /// How this version wants to be served.
    pub fn options(&self) -> &ServingOptions {
        &self.parts.options
    }

    /// Bytes of weights and working memory that the graphs need.
    pub fn memory_bytes(&self) -> u64 {
        self.parts.stages.iter().map(Stage::memory_bytes).sum()
    }

    /// What a run over inputs of this many bytes is expected to take; `None`
    /// before the first run.
    pub fn predicted_time(&self, input_bytes: usize) -> Option<Duration> {
        self.service_time.predict(input_bytes)
    }

    /// Statistics since the revision went live.
    pub fn stats_snapshot(&self) -> VersionStatsSnapshot {
        VersionStatsSnapshot {
            version: self.version(),
            revision: self.number(),
            queued_requests: self.batcher.waiting_count(),
            queued_bytes: self.batcher.waiting_bytes(),
            ..self.stats.snapshot()
        }
    }

    /// The first stage that is in quarantine, with the reason.
    pub(crate) fn quarantine(&self) -> Option<(&str, PluginHealth)> {
        self.parts.stages.iter().find_map(|stage| match stage.health() {
            PluginHealth::Ready => None,
            // Its time is over: the next request is the one that tries it.
            PluginHealth::Quarantined { retry_in, .. } if retry_in.is_zero() => None,
            sick => Some((stage.name.as_str(), sick)),
        })
    }

    /// Puts named inputs into the order of a run, with the state that a
    /// sequence begins with.
    ///
    /// # Errors
    /// When one is unknown, missing, given twice, or of another dtype or shape.
    pub(crate) fn bind(&self, inputs: Vec<(String, Tensor)>) -> Result<Vec<Tensor>> {
        let specs = &self.run_signature.inputs;
        let takes = || list(&self.signature.inputs);
        let mut slots: Vec<Option<Tensor>> = vec![None; specs.len()];
        for (name, tensor) in inputs {
            let found = self.input_index.get(&name).copied();
            let (Some(spec), Some(slot)) =
                (found.and_then(|at| specs.get(at)), found.and_then(|at| slots.get_mut(at)))
            else {
                return Err(Error::invalid(format!(
                    "unknown input \"{name}\"; the model takes {}",
                    takes()
                )));
            };
            spec.check(&tensor)?;
            if slot.replace(tensor).is_some() {
                return Err(Error::invalid(format!("input \"{name}\" is given twice")));
            }
        }
        if !self.state.is_empty() {
            self.begin_state(&mut slots)?;
        }
        let missing = |index: usize| {
            let name = &specs[index].name;
            Error::invalid(format!("missing input \"{name}\"; the model takes {}", takes()))
        };
        slots.into_iter().enumerate().map(|(at, slot)| slot.ok_or_else(|| missing(at))).collect()
    }

    fn begin_state(&self, slots: &mut [Option<Tensor>]) -> Result<()> {
        let rows = slots.iter().flatten().find_map(|tensor| tensor.shape().first().copied());
        for (index, tensor) in self.state.initial(rows.unwrap_or(1)) {
            slots[index] = Some(tensor?);
        }
        Ok(())
    }

    /// Rows of a run's inputs: dimension 0 of the first where that may vary.
    pub(crate) fn row_count(&self, inputs: &[Tensor]) -> u64 {
        let varies = |spec: &TensorSpec| spec.shape.first() == Some(&VARIABLE);
        let mut pairs = self.run_signature.inputs.iter().zip(inputs);
        let found = pairs.find(|(spec, _)| varies(spec)).map(|(_, tensor)| tensor);
        found.and_then(|tensor| tensor.shape().first()).map_or(1, |&rows| rows as u64)
    }

    /// Positions of the outputs that were asked for; all, in order, for `None`.
    ///
    /// # Errors
    /// When a name is unknown.
    pub(crate) fn select(&self, wanted: Option<&[String]>) -> Result<Option<Vec<usize>>> {
        let specs = &self.signature.outputs;
        let position = |name: &String| {
            specs.iter().position(|spec| spec.name == *name).ok_or_else(|| {
                Error::invalid(format!(
                    "unknown output \"{name}\"; the model gives {}",
                    list(specs)
                ))
            })
        };
        wanted.map(|names| names.iter().map(position).collect()).transpose()
    }

    /// The outputs of a run under their names, without state.
    pub(crate) fn name_outputs(&self, outputs: Vec<Tensor>) -> Vec<(String, Tensor)> {
        let public = outputs.into_iter().enumerate().filter(|(at, _)| !self.state.has_output(*at));
        let names = self.signature.outputs.iter().map(|spec| spec.name.clone());
        names.zip(public.map(|(_, tensor)| tensor)).collect()
    }

    /// Runs inputs in the run's order and measures the time. A panic in
    /// a kernel ends here, as an error of this one request.
    pub(crate) fn run(&self, inputs: Vec<Tensor>, control: &RunControl) -> Ran {
        let input_bytes = byte_len(&inputs);
        let started = Instant::now();
        let mut transforms = Duration::ZERO;
        let run = || self.run_stages(inputs, control, &mut transforms);
        let outcome = catch_unwind(AssertUnwindSafe(run));
        let took = started.elapsed();
        let result = outcome.unwrap_or_else(|panic| Err(self.panicked(&*panic)));
        let is_slower = || self.predicted_time(input_bytes).is_none_or(|known| took > known);
        match &result {
            Ok(_) => self.service_time.record(input_bytes, took),
            // It would have taken longer still.
            Err(error) if error.kind() == ErrorKind::Deadline && is_slower() => {
                self.service_time.record(input_bytes, took);
            }
            Err(_) => {}
        }
        let outputs = result.and_then(|outputs| self.check_count(outputs));
        Ran { outputs, took, transforms }
    }

    /// `transforms` is set to the time of the stages before the model.
    fn run_stages(
        &self,
        inputs: Vec<Tensor>,
        control: &RunControl,
        transforms: &mut Duration,
    ) -> Result<Vec<Tensor>> {
        if let [model] = self.parts.stages.as_slice() {
            return model.execute(inputs, control);
        }
        let started = Instant::now();
        let mut slots: Vec<Option<Tensor>> = vec![None; self.slot_count];
        for (&slot, tensor) in self.input_slots.iter().zip(inputs) {
            slots[slot] = Some(tensor);
        }
        let mut outputs = Vec::new();
        for (stage, step) in self.parts.stages.iter().zip(&self.steps) {
            control.check()?;
            let taken = step.inputs.iter().map(|take| take.read(&mut slots)).collect::<Result<_>>();
            outputs = stage
                .execute(taken?, control)
                .map_err(|error| error.context(format!("stage \"{}\"", stage.name)))?;
            if !step.outputs.is_empty() {
                let produced = std::mem::take(&mut outputs);
                step.outputs.iter().zip(produced).for_each(|(&at, out)| slots[at] = Some(out));
                *transforms = started.elapsed();
            }
        }
        Ok(outputs)
    }

    fn check_count(&self, outputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let (want, got) = (self.run_signature.outputs.len(), outputs.len());
        if want == got {
            return Ok(outputs);
        }
        Err(Error::plugin(format!("the model gave {got} outputs where it declared {want}")))
    }

    fn panicked(&self, panic: &(dyn std::any::Any + Send)) -> Error {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        let (endpoint, number) = (self.endpoint(), self.number());
        tracing::error!(endpoint, revision = number, panic = text, "a kernel panicked");
        Error::internal(format!(
            "the runtime failed while running model \"{endpoint}\" (revision {number}); \
             the server's log has the details"
        ))
    }
}

/// Sum of the bytes of some tensors.
pub(crate) fn byte_len(tensors: &[Tensor]) -> usize {
    tensors.iter().map(Tensor::byte_len).sum()
}

impl Take {
    fn read(&self, slots: &mut [Option<Tensor>]) -> Result<Tensor> {
        let slot = slots.get_mut(self.slot);
        let tensor = match (slot, self.is_last) {
            (Some(slot), true) => slot.take(),
            (Some(slot), false) => slot.clone(),
            (None, _) => None,
        };
        tensor.ok_or_else(|| Error::internal("a stage gave fewer tensors than it declared"))
    }
}

/// The connections of a revision while they are made.
#[derive(Default)]
struct Wiring {
    inputs: Vec<TensorSpec>,
    input_slots: Vec<usize>,
    steps: Vec<Step>,
    slot_count: usize,
}

/// A tensor that exists when a stage runs.
struct Available {
    slot: usize,
    spec: TensorSpec,
    /// The stage that gives it; `None` for an input of the revision.
    from: Option<usize>,
}

impl Wiring {
    fn of(stages: &[Stage]) -> Result<Self> {
        let mut wiring = Self::default();
        let mut available: HashMap<String, Available> = HashMap::new();
        let mut is_read = vec![false; stages.len()];
        for (index, stage) in stages.iter().enumerate() {
            let inputs = wiring.connect(stage, &mut available, &mut is_read)?;
            let is_model = index + 1 == stages.len();
            let outputs =
                if is_model { Vec::new() } else { wiring.provide(index, stage, &mut available) };
            wiring.steps.push(Step { inputs, outputs });
        }
        check_all_read(stages, &is_read)?;
        wiring.mark_last_reads();
        Ok(wiring)
    }

    fn connect(
        &mut self,
        stage: &Stage,
        available: &mut HashMap<String, Available>,
        is_read: &mut [bool],
    ) -> Result<Vec<Take>> {
        let mut takes = Vec::with_capacity(stage.signature.inputs.len());
        for spec in &stage.signature.inputs {
            if !available.contains_key(&spec.name) {
                let slot = self.new_slot();
                self.inputs.push(spec.clone());
                self.input_slots.push(slot);
                let entry = Available { slot, spec: spec.clone(), from: None };
                available.insert(spec.name.clone(), entry);
            }
            let Some(found) = available.get(&spec.name) else { continue };
            check_fits(&stage.name, spec, &found.spec)?;
            if let Some(from) = found.from {
                is_read[from] = true;
            }
            takes.push(Take { slot: found.slot, is_last: false });
        }
        Ok(takes)
    }

    fn provide(
        &mut self,
        index: usize,
        stage: &Stage,
        available: &mut HashMap<String, Available>,
    ) -> Vec<usize> {
        let provide_one = |spec: &TensorSpec| {
            let slot = self.new_slot();
            let entry = Available { slot, spec: spec.clone(), from: Some(index) };
            available.insert(spec.name.clone(), entry);
            slot
        };
        stage.signature.outputs.iter().map(provide_one).collect()
    }

    fn new_slot(&mut self) -> usize {
        self.slot_count += 1;
        self.slot_count - 1
    }

    fn mark_last_reads(&mut self) {
        let mut seen = vec![false; self.slot_count];
        let reads = self.steps.iter_mut().rev().flat_map(|step| step.inputs.iter_mut().rev());
        for take in reads {
            take.is_last = !std::mem::replace(&mut seen[take.slot], true);
        }
    }
}

fn check_fits(stage: &str, takes: &TensorSpec, gives: &TensorSpec) -> Result<()> {
    // What is not known before a run is checked by the stage that takes it.
    let dims_fit = gives.has_any_rank()
        || takes.shape.len() == gives.shape.len()
            && takes.shape.iter().zip(&gives.shape).all(|(&a, &b)| a < 0 || b < 0 || a == b);
    if takes.dtype == gives.dtype && dims_fit {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "stage \"{stage}\" takes {takes}, but what comes before it is {gives}"
    )))
}

fn check_all_read(stages: &[Stage], is_read: &[bool]) -> Result<()> {
    let transforms = stages.len().saturating_sub(1);
    let unread = stages.iter().zip(is_read).take(transforms).find(|(_, is_read)| !**is_read);
    let (Some((transform, _)), Some(model)) = (unread, stages.last()) else { return Ok(()) };
    Err(Error::invalid(format!(
        "transform \"{}\" gives {}, but no later stage takes that; \"{}\" takes {}: \
         give the transform's output that name",
        transform.name,
        list(&transform.signature.outputs),
        model.name,
        list(&model.signature.inputs)
    )))
}

/// `"a" FP32[-1, 4], "b" INT64[-1]`, cut after eight.
fn list(specs: &[TensorSpec]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = specs
        .iter()
        .take(SHOWN)
        .map(|spec| format!("\"{}\" {}{:?}", spec.name, spec.dtype, spec.shape_on_wire()))
        .collect();
    let more = specs.len().saturating_sub(SHOWN);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", shown.join(", "))
}

#[cfg(test)]
#[path = "revision_tests.rs"]
mod tests;
