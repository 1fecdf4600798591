//! Whether a graph is well formed, before anything is done with it.

use crate::{Evaluate, FUSED_DOMAIN, GraphLimits};
use mortise_types::{
    Attribute, Error, ErrorKind, GraphBody, GraphDef, NodeDef, Result, TensorSpec, VARIABLE,
    ValueId, ValueSource,
};
use std::collections::HashSet;
use std::sync::Arc;

/// # Errors
/// `InvalidInput` for unknown values, values read before they are written or
/// written twice, and names that do not match; `LimitExceeded` for too many
/// nodes or too deep a nesting.
pub(crate) fn validate(def: &GraphDef, limits: &GraphLimits) -> Result<()> {
    check_names(def)?;
    let known = def.values.iter().map(|value| is_constant(&value.source)).collect();
    let mut walk = Walk { def, limits, known, written: HashSet::new(), nodes: 0 };
    walk.body(&def.body, 0)
}

/// # Errors
/// One `Unsupported` naming each operator the device lacks with its node,
/// domain and opset; or what is wrong with an operator's attributes.
pub(crate) fn check_operators(body: &GraphBody, device: &dyn Evaluate) -> Result<()> {
    let mut missing = Vec::new();
    collect_missing(body, device, &mut missing)?;
    if missing.is_empty() {
        return Ok(());
    }
    missing.sort();
    missing.dedup();
    let more = missing.len().saturating_sub(LISTED);
    missing.truncate(LISTED);
    let tail = if more > 0 { format!("; and {more} more") } else { String::new() };
    Err(Error::unsupported(format!("unsupported in this graph: {}{tail}", missing.join("; "))))
}

/// # Errors
/// `Unsupported` for an output of the graph that is no tensor.
pub(crate) fn check_outputs(def: &GraphDef) -> Result<()> {
    const NO_TENSOR: [&str; 8] = [
        "ZipMap",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceMap",
        "SplitToSequence",
        "Optional",
    ];
    let makes = |node: &&NodeDef| NO_TENSOR.contains(&&*node.op);
    for node in def.body.nodes.iter().filter(makes) {
        let mut outputs = def.body.outputs.iter().zip(&def.output_names);
        if let Some((_, name)) = outputs.find(|(value, _)| node.outputs.contains(&Some(**value))) {
            return Err(Error::unsupported(format!(
                "output \"{name}\" of {} is not a tensor; only tensors can be answered with",
                node.describe()
            )));
        }
    }
    Ok(())
}

/// Most operators that one message lists.
const LISTED: usize = 50;

fn collect_missing(
    body: &GraphBody,
    device: &dyn Evaluate,
    missing: &mut Vec<String>,
) -> Result<()> {
    for node in &body.nodes {
        if &*node.domain == FUSED_DOMAIN {
            missing.push(format!("{} is not supported", node.describe()));
            continue;
        }
        match device.supports(node) {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                missing.push(error.message().to_owned());
            }
            other => other?,
        }
        subgraphs(node).try_for_each(|inner| collect_missing(inner, device, missing))?;
    }
    Ok(())
}

pub(crate) fn subgraphs(node: &NodeDef) -> impl Iterator<Item = &Arc<GraphBody>> {
    node.attributes.iter().filter_map(|(_, value)| match value {
        Attribute::Graph(body) => Some(body),
        _ => None,
    })
}

fn is_constant(source: &ValueSource) -> bool {
    matches!(source, ValueSource::Weight(_) | ValueSource::Constant(_))
}

fn check_names(def: &GraphDef) -> Result<()> {
    let counts = [
        ("inputs", def.body.inputs.len(), def.inputs.len()),
        ("outputs", def.body.outputs.len(), def.output_names.len()),
    ];
    for (what, values, names) in counts {
        if values != names {
            return Err(Error::invalid(format!("the graph has {values} {what} and {names} names")));
        }
    }
    if def.output_names.is_empty() {
        return Err(Error::invalid("the graph has no outputs"));
    }
    let odd = |spec: &&TensorSpec| spec.shape.iter().any(|dim| *dim < VARIABLE);
    if let Some(spec) = def.inputs.iter().find(odd) {
        return Err(Error::invalid(format!(
            "{spec}: sizes are {VARIABLE} where variable, or more"
        )));
    }
    distinct("input", def.inputs.iter().map(|spec| spec.name.as_str()))?;
    distinct("output", def.output_names.iter().map(String::as_str))
}

fn distinct<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(Error::invalid(format!("two graph {what}s are named \"{name}\"")));
        }
    }
    Ok(())
}

struct Walk<'a> {
    def: &'a GraphDef,
    limits: &'a GraphLimits,
    /// By value: whether it may be read here.
    known: Vec<bool>,
    /// Every value that some node or body has defined so far.
    written: HashSet<ValueId>,
    nodes: usize,
}

impl Walk<'_> {
    fn body(&mut self, body: &GraphBody, depth: usize) -> Result<()> {
        if depth > self.limits.max_nesting {
            let limit = self.limits.max_nesting;
            return Err(Error::limit(format!("subgraphs nest deeper than max_nesting = {limit}")));
        }
        let mut local = Vec::new();
        for value in &body.inputs {
            self.define(*value, "input", &mut local)?;
        }
        for node in &body.nodes {
            self.node(node, depth, &mut local)?;
        }
        for value in &body.outputs {
            self.readable(*value, || "the graph's outputs".to_owned())?;
        }
        local.into_iter().for_each(|value: ValueId| self.known[value.index()] = false);
        Ok(())
    }

    fn node(&mut self, node: &NodeDef, depth: usize, local: &mut Vec<ValueId>) -> Result<()> {
        self.nodes += 1;
        if self.nodes > self.limits.max_nodes {
            let limit = self.limits.max_nodes;
            return Err(Error::limit(format!("the graph has more than max_nodes = {limit} nodes")));
        }
        for value in node.inputs.iter().flatten() {
            self.readable(*value, || node.describe())?;
        }
        for inner in subgraphs(node) {
            self.body(inner, depth + 1)?;
        }
        for value in node.outputs.iter().flatten() {
            self.define(*value, "output of a node", local)?;
        }
        Ok(())
    }

    fn readable(&self, value: ValueId, reader: impl Fn() -> String) -> Result<()> {
        match self.known.get(value.index()) {
            Some(true) => Ok(()),
            Some(false) => Err(Error::invalid(format!(
                "{} reads \"{}\" before any node writes it; nodes must be in topological order, \
                 without cycles",
                reader(),
                self.name(value)
            ))),
            None => Err(Error::invalid(format!("{} reads unknown value {}", reader(), value.0))),
        }
    }

    fn define(&mut self, value: ValueId, what: &str, local: &mut Vec<ValueId>) -> Result<()> {
        let Some(def) = self.def.values.get(value.index()) else {
            return Err(Error::invalid(format!("{what}: unknown value {}", value.0)));
        };
        if is_constant(&def.source) {
            return Err(Error::invalid(format!("{what}: \"{}\" is a constant", def.name)));
        }
        if !self.written.insert(value) {
            return Err(Error::invalid(format!("\"{}\" is written twice", def.name)));
        }
        self.known[value.index()] = true;
        local.push(value);
        Ok(())
    }

    fn name(&self, value: ValueId) -> &str {
        self.def.values.get(value.index()).map_or("", |def| def.name.as_str())
    }
}
