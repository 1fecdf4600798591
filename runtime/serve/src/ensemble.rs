use crate::endpoint::Endpoint;
use crate::registry::Registry;
use crate::revision::Revision;
use crate::stage::{CustomStage, Stage, StageRun};
use mortise_host::{PluginHealth, PluginStats};
use mortise_types::{Error, Result, RunControl, Signature, Tensor, TensorSpec};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Deployed models in a row, as one endpoint. Each step is served by what is
/// live when a request begins, with the limits, the batching and the statistics
/// of its own endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnsemblePlan {
    /// In the order they run.
    pub steps: Vec<EnsembleStep>,
    /// The tensors to answer with; `None` for all that no later step takes.
    pub outputs: Option<Vec<String>>,
}

/// One model of an ensemble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnsembleStep {
    /// Name of an endpoint.
    pub model: String,
    /// From which tensor of the ensemble each input of the model comes; what is
    /// left out comes from the tensor of its own name.
    pub inputs: Vec<(String, String)>,
    /// Which tensor of the ensemble each output becomes; so for the others.
    pub outputs: Vec<(String, String)>,
}

/// One step of an ensemble in one request.
#[derive(Clone, Debug)]
pub struct StepRun {
    /// Name of the endpoint.
    pub model: String,
    /// What answered there, or could not.
    pub version: u64,
    pub from: Instant,
    pub until: Instant,
    pub error: Option<Error>,
}

/// What an ensemble ran for a traced request, also when it failed: an answer
/// that never came could not tell.
#[derive(Debug, Default)]
pub struct StepLog(Mutex<Vec<StepRun>>);

impl StepLog {
    pub(crate) fn push(&self, step: StepRun) {
        self.0.lock().push(step);
    }

    /// In the order they ran.
    pub fn take(&self) -> Vec<StepRun> {
        std::mem::take(&mut *self.0.lock())
    }
}

/// A plan whose models were found and fit each other.
pub(crate) struct Ensemble {
    steps: Vec<EnsembleStep>,
    signature: Signature,
    registry: Weak<Registry>,
}

/// What each step is served by, for one request.
pub(crate) type Members = Vec<(Arc<Endpoint>, Arc<Revision>)>;

/// The tensors of one request by name.
pub(crate) type Tensors = HashMap<String, Tensor>;

impl Stage {
    /// The stage that runs a plan over the endpoints of `registry`. `digest` is
    /// that of the plan's file.
    ///
    /// # Errors
    /// `InvalidInput` when tensors do not fit, `NotReady` naming a model that
    /// is not deployed.
    pub fn ensemble(digest: &str, plan: &EnsemblePlan, registry: &Arc<Registry>) -> Result<Self> {
        let ensemble = Ensemble::new(plan, registry)?;
        Ok(Self {
            name: "ensemble".to_string(),
            digest: digest.to_string(),
            transforms: Vec::new(),
            signature: ensemble.signature.clone(),
            run: StageRun::Custom(Arc::new(ensemble)),
        })
    }
}

impl Ensemble {
    fn new(plan: &EnsemblePlan, registry: &Arc<Registry>) -> Result<Self> {
        if plan.steps.is_empty() {
            return Err(Error::invalid("an ensemble needs at least one [[step]]"));
        }
        let mut wiring = Wiring::default();
        for (index, step) in plan.steps.iter().enumerate() {
            let about = |error: Error| error.context(format_args!("step {}", index + 1));
            let (_, revision) = member(registry, &step.model).map_err(about)?;
            wiring.connect(step, revision.signature()).map_err(about)?;
        }
        let outputs = wiring.outputs(plan.outputs.as_deref())?;
        Ok(Self {
            steps: wiring.steps,
            signature: Signature { inputs: wiring.inputs, outputs },
            registry: Arc::downgrade(registry),
        })
    }

    pub(crate) fn steps(&self) -> &[EnsembleStep] {
        &self.steps
    }

    /// What is live now, once for each model: one that occurs twice is served
    /// by one revision.
    ///
    /// # Errors
    /// `NotReady` naming a model that cannot answer.
    pub(crate) fn members(&self, registry: &Registry) -> Result<Members> {
        let mut members = Members::new();
        for step in &self.steps {
            let known = members.iter().find(|(endpoint, _)| endpoint.name() == step.model);
            let next = match known {
                Some(known) => known.clone(),
                None => member(registry, &step.model)?,
            };
            members.push(next);
        }
        Ok(members)
    }

    /// The tensors that a request begins with.
    pub(crate) fn begin(&self, inputs: Vec<Tensor>) -> Tensors {
        let names = self.signature.inputs.iter().map(|spec| spec.name.clone());
        names.zip(inputs).collect()
    }

    /// # Errors
    /// `Internal` when a tensor is missing.
    pub(crate) fn finish(&self, tensors: &Tensors) -> Result<Vec<Tensor>> {
        let names = self.signature.outputs.iter().map(|spec| &spec.name);
        names.map(|name| find(tensors, name)).collect()
    }
}

impl EnsembleStep {
    /// The inputs of the model.
    ///
    /// # Errors
    /// `Internal` when a tensor is missing.
    pub(crate) fn gather(&self, tensors: &Tensors) -> Result<Vec<(String, Tensor)>> {
        let take = |(input, name): &(String, String)| Ok((input.clone(), find(tensors, name)?));
        self.inputs.iter().map(take).collect()
    }

    /// Keeps the answer of the model.
    pub(crate) fn scatter(&self, answer: Vec<(String, Tensor)>, tensors: &mut Tensors) {
        for (output, tensor) in answer {
            if let Some((_, name)) = self.outputs.iter().find(|(own, _)| *own == output) {
                tensors.insert(name.clone(), tensor);
            }
        }
    }
}

/// Runs the steps on the calling thread: for self-tests and warm-up. Requests
/// go through the batching of each member instead.
impl CustomStage for Ensemble {
    fn call(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Vec<Tensor>> {
        let registry = self.registry.upgrade();
        let registry = registry.ok_or_else(|| Error::not_ready("the server is shutting down"))?;
        let members = self.members(&registry)?;
        let mut tensors = self.begin(inputs);
        for (step, (_, revision)) in self.steps.iter().zip(&members) {
            control.check()?;
            let answer = revision
                .run_blocking(step.gather(&tensors)?, control)
                .map_err(|error| error.context(format_args!("model \"{}\"", step.model)))?;
            step.scatter(answer, &mut tensors);
        }
        self.finish(&tensors)
    }

    fn health(&self) -> PluginHealth {
        let Some(registry) = self.registry.upgrade() else { return PluginHealth::Ready };
        let sick = |step: &EnsembleStep| match registry.endpoint(&step.model) {
            None => Some(format!("model \"{}\" is not deployed", step.model)),
            Some(endpoint) => endpoint.readiness().obstacle(),
        };
        match self.steps.iter().find_map(sick) {
            None => PluginHealth::Ready,
            Some(reason) => PluginHealth::Quarantined { reason, retry_in: Duration::from_secs(1) },
        }
    }

    fn stats(&self) -> PluginStats {
        PluginStats::default()
    }

    fn as_ensemble(&self) -> Option<&Ensemble> {
        Some(self)
    }
}

/// A model that is live, and is no ensemble itself: those could name each other
/// in a circle.
fn member(registry: &Registry, name: &str) -> Result<(Arc<Endpoint>, Arc<Revision>)> {
    let endpoint = registry.endpoint(name);
    let endpoint =
        endpoint.ok_or_else(|| Error::not_ready(format!("model \"{name}\" is not deployed")))?;
    let revision = endpoint.current()?;
    if revision.ensemble().is_some() {
        return Err(Error::invalid(format!(
            "model \"{name}\" is an ensemble; name its steps instead"
        )));
    }
    if !revision.state().is_empty() {
        return Err(Error::unsupported(format!(
            "model \"{name}\" keeps state between requests and cannot be part of an ensemble"
        )));
    }
    Ok((endpoint, revision))
}

fn find(tensors: &Tensors, name: &str) -> Result<Tensor> {
    let found = tensors.get(name).cloned();
    found.ok_or_else(|| Error::internal(format!("a model did not give \"{name}\"")))
}

/// The connections of an ensemble while they are made.
#[derive(Default)]
struct Wiring {
    steps: Vec<EnsembleStep>,
    inputs: Vec<TensorSpec>,
    /// What the steps give, in order.
    given: Vec<TensorSpec>,
    /// Names of what is given and taken by a later step.
    taken: Vec<String>,
}

impl Wiring {
    fn connect(&mut self, step: &EnsembleStep, signature: &Signature) -> Result<()> {
        let inputs = renamed(&step.inputs, &signature.inputs, "input")?;
        let outputs = renamed(&step.outputs, &signature.outputs, "output")?;
        for ((_, name), spec) in inputs.iter().zip(&signature.inputs) {
            self.take(name, spec)?;
        }
        for ((_, name), spec) in outputs.iter().zip(&signature.outputs) {
            let is_known = |specs: &[TensorSpec]| specs.iter().any(|spec| spec.name == *name);
            if is_known(&self.given) || is_known(&self.inputs) {
                return Err(Error::invalid(format!(
                    "there are two tensors \"{name}\"; give the output \"{}\" another name in \
                     [step.outputs]",
                    spec.name
                )));
            }
            self.given.push(TensorSpec { name: name.clone(), ..spec.clone() });
        }
        self.steps.push(EnsembleStep { model: step.model.clone(), inputs, outputs });
        Ok(())
    }

    fn take(&mut self, name: &str, spec: &TensorSpec) -> Result<()> {
        let mut known = self.given.iter().chain(&self.inputs);
        match known.find(|known| known.name == name) {
            None => self.inputs.push(TensorSpec { name: name.to_string(), ..spec.clone() }),
            Some(known) if !fits(spec, known) => {
                return Err(Error::invalid(format!("takes {spec}, but \"{name}\" is {known}")));
            }
            Some(_) => self.taken.push(name.to_string()),
        }
        Ok(())
    }

    fn outputs(&self, wanted: Option<&[String]>) -> Result<Vec<TensorSpec>> {
        let Some(wanted) = wanted else {
            let left = self.given.iter().filter(|spec| !self.taken.contains(&spec.name));
            return Ok(left.cloned().collect());
        };
        let find = |name: &String| {
            self.given.iter().find(|spec| spec.name == *name).cloned().ok_or_else(|| {
                let names: Vec<&str> = self.given.iter().map(|spec| spec.name.as_str()).collect();
                Error::invalid(format!("no step gives \"{name}\"; the steps give {names:?}"))
            })
        };
        wanted.iter().map(find).collect()
    }
}

/// Every tensor of a model, in the signature's order, with its name in the
/// ensemble.
fn renamed(
    listed: &[(String, String)],
    specs: &[TensorSpec],
    what: &str,
) -> Result<Vec<(String, String)>> {
    let is_unknown = |(own, _): &&(String, String)| !specs.iter().any(|spec| spec.name == *own);
    if let Some((own, _)) = listed.iter().find(is_unknown) {
        let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        return Err(Error::invalid(format!("the model has no {what} \"{own}\"; it has {names:?}")));
    }
    let name = |spec: &TensorSpec| {
        let given = listed.iter().find(|(own, _)| *own == spec.name).map(|(_, name)| name.clone());
        (spec.name.clone(), given.unwrap_or_else(|| spec.name.clone()))
    };
    Ok(specs.iter().map(name).collect())
}

fn fits(takes: &TensorSpec, gives: &TensorSpec) -> bool {
    takes.dtype == gives.dtype
        && takes.shape.len() == gives.shape.len()
        && takes.shape.iter().zip(&gives.shape).all(|(&a, &b)| a < 0 || b < 0 || a == b)
}

#[cfg(test)]
#[path = "ensemble_tests.rs"]
mod tests;
