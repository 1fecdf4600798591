//! `If`, `Loop` and `Scan`: operators that run subgraphs.

mod scan;

use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs, RunSubgraph};
use crate::cpu::ops::layout::one_integer;
use crate::cpu::ops::shape_ops::concatenate;
use mortise_types::{Error, GraphBody, NodeDef, Result, Shape, Tensor, Value};
use std::sync::Arc;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "If", since: 1, build: If::build },
    Entry { op: "Loop", since: 1, build: Loop::build },
    Entry { op: "Scan", since: 8, build: scan::BatchedScan::build },
    Entry { op: "Scan", since: 9, build: scan::Scan::build },
];

fn runner<'a>(ctx: &OpContext<'a>) -> Result<&'a dyn RunSubgraph> {
    ctx.subgraphs.ok_or_else(|| Error::internal("nobody runs subgraphs here"))
}

/// The only element of a boolean tensor.
fn condition(value: &Tensor) -> Result<bool> {
    match value.bool_bytes()? {
        [byte] => Ok(*byte != 0),
        _ => Err(Error::invalid(format!("a condition must be one BOOL, got {value:?}"))),
    }
}

struct If {
    then_branch: Arc<GraphBody>,
    else_branch: Arc<GraphBody>,
}

impl If {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        Ok(Box::new(Self {
            then_branch: attributes.graph("then_branch")?,
            else_branch: attributes.graph("else_branch")?,
        }))
    }
}

impl Operator for If {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let body =
            if condition(inputs.tensor(0)?)? { &self.then_branch } else { &self.else_branch };
        let outputs = runner(ctx)?.run_body(body, Vec::new())?;
        if outputs.len() < ctx.output_count {
            return Err(Error::invalid(format!("a branch of If has {} outputs", outputs.len())));
        }
        Ok(outputs.into())
    }
}

struct Loop {
    body: Arc<GraphBody>,
    /// Values that go from one iteration to the next.
    state_count: usize,
    scan_count: usize,
}

impl Loop {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let body = Attributes(node).graph("body")?;
        let state_count = node.inputs.len().saturating_sub(2);
        let scan_count = body.outputs.len().checked_sub(1 + state_count);
        let (Some(scan_count), true) = (scan_count, body.inputs.len() == state_count + 2) else {
            return Err(Error::invalid(format!(
                "the body of a Loop with {state_count} carried values has {} inputs and {} outputs",
                body.inputs.len(),
                body.outputs.len()
            )));
        };
        Ok(Box::new(Self { body, state_count, scan_count }))
    }

    /// One iteration: whether to go on, the new state, and the scan outputs.
    fn step(
        &self,
        ctx: &OpContext<'_>,
        iteration: i64,
        state: Vec<Value>,
    ) -> Result<(bool, Vec<Value>, Vec<Value>)> {
        ctx.control.take_iterations(1)?;
        let mut inputs = Vec::with_capacity(state.len() + 2);
        inputs.push(Tensor::scalar(iteration).into());
        inputs.push(Tensor::from_bools(&[], vec![1])?.into());
        inputs.extend(state);
        let mut outputs = runner(ctx)?.run_body(&self.body, inputs)?.into_iter();
        let go_on = match outputs.next() {
            Some(value) => condition(value.tensor()?)?,
            None => false,
        };
        let state = outputs.by_ref().take(self.state_count).collect();
        Ok((go_on, state, outputs.collect()))
    }

    /// Stacked scan outputs. If there was no iteration, their types come from
    /// one that does not count.
    fn finish(
        &self,
        ctx: &OpContext<'_>,
        collected: Vec<Vec<Tensor>>,
        state: &[Value],
    ) -> Result<Outputs> {
        if collected.iter().any(Vec::is_empty) {
            let (_, _, sample) = self.step(ctx, 0, state.to_vec())?;
            return sample.into_iter().map(|value| empty_stack(&value, 0)).collect();
        }
        collected.into_iter().map(|parts| stack(ctx, parts, 0).map(Value::from)).collect()
    }
}

impl Operator for Loop {
    fn run(&self, ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let most = match inputs.optional(0)? {
            Some(tensor) => one_integer(tensor)?,
            None => i64::MAX,
        };
        let mut go_on = match inputs.optional(1)? {
            Some(tensor) => condition(tensor)?,
            None => true,
        };
        let mut state: Vec<Value> =
            (2..2 + self.state_count).map(|item| inputs.take_value(item)).collect::<Result<_>>()?;
        let mut collected: Vec<Vec<Tensor>> = vec![Vec::new(); self.scan_count];
        let mut iteration = 0;
        while go_on && iteration < most {
            let (next, new_state, scanned) = self.step(ctx, iteration, state)?;
            for (list, value) in collected.iter_mut().zip(scanned) {
                list.push(value.into_tensor()?);
            }
            (go_on, state) = (next, new_state);
            iteration += 1;
        }
        let scanned = self.finish(ctx, collected, &state)?;
        let mut outputs: Outputs = state.into();
        outputs.extend(scanned);
        Ok(outputs)
    }
}

/// Tensors of one shape under a new axis.
fn stack(ctx: &OpContext<'_>, parts: Vec<Tensor>, axis: i64) -> Result<Tensor> {
    let Some(first) = parts.first() else {
        return Err(Error::internal("there is nothing to stack"));
    };
    let along = crate::cpu::ops::layout::axis(axis, first.rank() + 1)?;
    let mut shape: Shape = first.shape().into();
    shape.insert(along, 1);
    let parts: Vec<Tensor> =
        parts.into_iter().map(|part| part.reshaped(&shape)).collect::<Result<_>>()?;
    concatenate(ctx, &parts.iter().collect::<Vec<_>>(), along as i64)
}

/// What [`stack`] of no tensors like `sample` would be.
fn empty_stack(sample: &Value, axis: i64) -> Result<Value> {
    let sample = sample.tensor()?;
    let along = crate::cpu::ops::layout::axis(axis, sample.rank() + 1)?;
    let mut shape: Shape = sample.shape().into();
    shape.insert(along, 0);
    Tensor::zeros(sample.dtype(), &shape).map(Value::from)
}
