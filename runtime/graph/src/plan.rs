use crate::infer::{Fact, infer_body};
use crate::quantise::{self, QuantReport, Quantisation};
use crate::{GraphLimits, fold, fuse, prune, rows, validate, weights};
use mortise_types::{
    Assets, DType, GraphBody, GraphDef, NodeDef, Result, RunControl, Shape, Signature, TensorSpec,
    Value, ValueId,
};
use std::collections::HashMap;
use std::time::Instant;

/// Checks a graph and makes it ready for a device: weights resolved without
/// copying where they are aligned, constants folded through `device`, dead
/// nodes removed, common patterns fused, types and shapes inferred.
///
/// # Errors
/// `InvalidInput` for a malformed graph or weights outside their asset,
/// `Unsupported` naming every operator that `device` lacks, `LimitExceeded`
/// naming the limit, `Deadline` when planning took over `max_plan_time`.
pub fn plan(
    def: &GraphDef,
    assets: &Assets,
    limits: &GraphLimits,
    device: &dyn Evaluate,
) -> Result<Plan> {
    Ok(Draft::folded(def, assets, limits, device)?.finish(def, device))
}

/// As [`plan`], with weights in fewer bits.
///
/// # Errors
/// As [`plan`].
pub fn plan_quantised(
    def: &GraphDef,
    assets: &Assets,
    limits: &GraphLimits,
    device: &dyn Evaluate,
    how: &Quantisation,
) -> Result<(Plan, QuantReport)> {
    let mut draft = Draft::folded(def, assets, limits, device)?;
    let report = quantise::quantise(&mut draft, how, device);
    Ok((draft.finish(def, device), report))
}

/// As [`plan`], for finding the ranges that [`plan_quantised`] takes: the
/// activations whose ranges count are outputs behind those of the graph, and
/// are returned in that order.
///
/// # Errors
/// As [`plan`].
pub fn plan_observed(
    def: &GraphDef,
    assets: &Assets,
    limits: &GraphLimits,
    device: &dyn Evaluate,
) -> Result<(Plan, Vec<ValueId>)> {
    let mut draft = Draft::folded(def, assets, limits, device)?;
    let observed = quantise::activations(&draft);
    draft.body.outputs.extend(&observed);
    Ok((draft.finish(def, device), observed))
}

/// By the first output of a node that fusion made: the operators that it
/// stands for, in the order in which they stood.
pub type Origins = HashMap<ValueId, Vec<String>>;

/// A graph ready for a device to compile. Values keep the numbering of the
/// [`GraphDef`]; those made by fusions come after.
#[derive(Clone)]
pub struct Plan {
    /// Top-level nodes in the order to run them. Subgraphs stay in attributes.
    pub body: GraphBody,
    /// By value index: the value when it is a weight or folded, else `None`.
    pub constants: Vec<Option<Value>>,
    /// By value index: what is known of dtype and shape.
    pub facts: Vec<Fact>,
    pub origins: Origins,
    /// As the graph computes it. Where inference does not know an output (see
    /// its fact), `FP32` and any rank stand in.
    pub signature: Signature,
    /// Whether dimension 0 of every input and output is the batch and no
    /// operator mixes rows, so that requests may be merged and split.
    pub rows_independent: bool,
}

impl Plan {
    /// The same plan for inputs of exactly `shapes`: what depends on shapes
    /// alone is folded, and more shapes are known.
    ///
    /// # Errors
    /// As [`plan`], of what folding finds.
    pub fn specialised(
        &self,
        shapes: &[Shape],
        limits: &GraphLimits,
        device: &dyn Evaluate,
    ) -> Result<Self> {
        let deadline = Instant::now().checked_add(limits.max_plan_time);
        let control = RunControl::new(deadline, limits.max_loop_iterations);
        let mut draft = Draft {
            body: self.body.clone(),
            constants: self.constants.clone(),
            facts: self.facts.clone(),
            origins: self.origins.clone(),
        };
        for (value, shape) in self.body.inputs.iter().zip(shapes) {
            let fact = &mut draft.facts[value.index()];
            fact.shape = Some(shape.iter().map(|dim| *dim as i64).collect());
        }
        fold::fold(&mut draft, limits, device, &control)?;
        prune::prune(&mut draft);
        infer_body(&draft.body, &draft.constants, &mut draft.facts);
        let Draft { body, constants, facts, origins } = draft;
        let (signature, rows_independent) = (self.signature.clone(), self.rows_independent);
        Ok(Self { body, constants, facts, origins, signature, rows_independent })
    }
}

/// How planning asks the device about operators.
pub trait Evaluate {
    /// # Errors
    /// `Unsupported` when the device has no such operator; `InvalidInput` when
    /// its attributes are wrong.
    fn supports(&self, node: &NodeDef) -> Result<()>;

    /// Runs one node that has no subgraphs, in at most `max_bytes` of memory.
    ///
    /// # Errors
    /// Whatever the operator says of its inputs, or a limit that was hit.
    fn evaluate(
        &self,
        node: &NodeDef,
        inputs: Vec<Option<Value>>,
        max_bytes: usize,
        control: &RunControl,
    ) -> Result<Vec<Value>>;
}

/// A plan in the making.
pub(crate) struct Draft {
    pub(crate) body: GraphBody,
    pub(crate) constants: Vec<Option<Value>>,
    pub(crate) facts: Vec<Fact>,
    pub(crate) origins: Origins,
}

impl Draft {
    /// A checked graph with its constants folded.
    fn folded(
        def: &GraphDef,
        assets: &Assets,
        limits: &GraphLimits,
        device: &dyn Evaluate,
    ) -> Result<Self> {
        let deadline = Instant::now().checked_add(limits.max_plan_time);
        let control = RunControl::new(deadline, limits.max_loop_iterations);
        validate::validate(def, limits)?;
        validate::check_operators(&def.body, device)?;
        validate::check_outputs(def)?;
        let mut draft = Self {
            body: def.body.clone(),
            constants: weights::resolve(def, assets, limits)?,
            facts: vec![Fact::default(); def.values.len()],
            origins: Origins::new(),
        };
        draft.describe_inputs(def);
        prune::prune(&mut draft);
        fold::fold(&mut draft, limits, device, &control)?;
        prune::prune(&mut draft);
        Ok(draft)
    }

    fn finish(mut self, def: &GraphDef, device: &dyn Evaluate) -> Plan {
        fuse::fuse(&mut self, device);
        prune::prune(&mut self);
        infer_body(&self.body, &self.constants, &mut self.facts);
        let signature = self.signature(def);
        let rows_independent = rows::rows_independent(&self);
        let Self { body, constants, facts, origins } = self;
        Plan { body, constants, facts, origins, signature, rows_independent }
    }

    /// A constant that the graph did not have.
    pub(crate) fn add_constant(&mut self, constant: Value) -> ValueId {
        let id = ValueId(self.facts.len() as u32);
        self.facts.push(Fact::of(&constant));
        self.constants.push(Some(constant));
        id
    }

    fn describe_inputs(&mut self, def: &GraphDef) {
        for (fact, constant) in self.facts.iter_mut().zip(&self.constants) {
            *fact = constant.as_ref().map(Fact::of).unwrap_or_default();
        }
        for (value, spec) in def.body.inputs.iter().zip(&def.inputs) {
            self.facts[value.index()] =
                Fact { dtype: Some(spec.dtype), shape: Some(spec.shape.clone()) };
        }
    }

    pub(crate) fn set_constant(&mut self, value: ValueId, constant: Value) {
        if let Some(fact) = self.facts.get_mut(value.index()) {
            *fact = Fact::of(&constant);
        }
        if let Some(slot) = self.constants.get_mut(value.index()) {
            *slot = Some(constant);
        }
    }

    fn fact(&self, value: ValueId) -> Fact {
        self.facts.get(value.index()).cloned().unwrap_or_default()
    }

    fn signature(&self, def: &GraphDef) -> Signature {
        let output = |(value, name): (&ValueId, &String)| {
            let fact = self.fact(*value);
            let dtype = fact.dtype.unwrap_or(DType::F32);
            match fact.shape {
                Some(shape) => TensorSpec::new(name, dtype, &shape),
                None => TensorSpec::of_any_rank(name, dtype),
            }
        };
        let outputs = self.body.outputs.iter().zip(&def.output_names).map(output).collect();
        Signature { inputs: def.inputs.clone(), outputs }
    }
}
