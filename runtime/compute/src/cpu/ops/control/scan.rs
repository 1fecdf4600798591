//! `Scan`: a subgraph run for every slice of its inputs.

use super::{empty_stack, runner, stack};
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{View, axis, copy_view, dim, integers};
use mortise_types::{Error, GraphBody, NodeDef, Result, Shape, Tensor, Value};
use std::sync::Arc;

/// The body and how its inputs and outputs split.
struct Body {
    graph: Arc<GraphBody>,
    state_count: usize,
    scan_input_count: usize,
    scan_output_count: usize,
}

impl Body {
    fn of(node: &NodeDef, input_count: usize) -> Result<Self> {
        let attributes = Attributes(node);
        let graph = attributes.graph("body")?;
        let scan_input_count = dim(attributes.int_or("num_scan_inputs", 0)?)?;
        let state_count = input_count.checked_sub(scan_input_count);
        let scan_output_count =
            state_count.and_then(|count| graph.outputs.len().checked_sub(count));
        match (state_count, scan_output_count) {
            (Some(state_count), Some(scan_output_count))
                if scan_input_count > 0 && graph.inputs.len() == input_count =>
            {
                Ok(Self { graph, state_count, scan_input_count, scan_output_count })
            }
            _ => Err(Error::invalid(format!(
                "the body of a Scan over {scan_input_count} of {input_count} inputs has {} inputs \
                 and {} outputs",
                graph.inputs.len(),
                graph.outputs.len()
            ))),
        }
    }

    /// Runs over `length` slices; slice `i` of scan input `k` is `slice(k, i)`.
    /// Answers with the last state and the slices of the scan outputs.
    fn run(
        &self,
        ctx: &OpContext<'_>,
        mut state: Vec<Value>,
        length: usize,
        slice: impl Fn(usize, usize) -> Result<Tensor>,
    ) -> Result<(Vec<Value>, Vec<Vec<Tensor>>)> {
        let mut scanned: Vec<Vec<Tensor>> = vec![Vec::new(); self.scan_output_count];
        for step in 0..length {
            ctx.control.take_iterations(1)?;
            let mut inputs = state;
            for input in 0..self.scan_input_count {
                inputs.push(slice(input, step)?.into());
            }
            let mut outputs = runner(ctx)?.run_body(&self.graph, inputs)?.into_iter();
            state = outputs.by_ref().take(self.state_count).collect();
            for (list, value) in scanned.iter_mut().zip(outputs) {
                list.push(value.into_tensor()?);
            }
        }
        Ok((state, scanned))
    }

    /// Scan outputs of one run that does not count, for their types.
    fn sample(
        &self,
        ctx: &OpContext<'_>,
        state: Vec<Value>,
        slices: impl Iterator<Item = Result<Tensor>>,
    ) -> Result<Vec<Value>> {
        ctx.control.take_iterations(1)?;
        let mut inputs = state;
        for slice in slices {
            inputs.push(slice?.into());
        }
        let outputs = runner(ctx)?.run_body(&self.graph, inputs)?;
        Ok(outputs.into_iter().skip(self.state_count).collect())
    }
}

/// The slice at `index` along an axis, without that axis.
fn slice_at(ctx: &OpContext<'_>, input: &Tensor, along: usize, index: usize) -> Result<Tensor> {
    let mut view = View::of(input.shape());
    view.offset = index as isize * view.strides[along];
    view.shape.remove(along);
    view.strides.remove(along);
    copy_view(ctx, input, &view, &view.shape)
}

fn zeros_like_slice(input: &Tensor, along: usize) -> Result<Tensor> {
    let mut shape: Shape = input.shape().into();
    shape.remove(along);
    Tensor::zeros(input.dtype(), &shape)
}

/// Since opset 9: any axes and directions, no batch.
pub(super) struct Scan {
    body: Body,
    input_axes: Vec<i64>,
    output_axes: Vec<i64>,
    input_reversed: Vec<bool>,
    output_reversed: Vec<bool>,
}

fn list_or_zeros(attributes: &Attributes<'_>, name: &str, count: usize) -> Result<Vec<i64>> {
    match attributes.ints(name)? {
        None => Ok(vec![0; count]),
        Some(list) if list.len() == count => Ok(list.to_vec()),
        Some(list) => {
            Err(Error::invalid(format!("{name} has {} values, expected {count}", list.len())))
        }
    }
}

impl Scan {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let body = Body::of(node, node.inputs.len())?;
        let reversed = |name, count| -> Result<Vec<bool>> {
            Ok(list_or_zeros(&attributes, name, count)?.iter().map(|&way| way == 1).collect())
        };
        Ok(Box::new(Self {
            input_axes: list_or_zeros(&attributes, "scan_input_axes", body.scan_input_count)?,
            output_axes: list_or_zeros(&attributes, "scan_output_axes", body.scan_output_count)?,
            input_reversed: reversed("scan_input_directions", body.scan_input_count)?,
            output_reversed: reversed("scan_output_directions", body.scan_output_count)?,
            body,
        }))
    }
}

impl Operator for Scan {
    fn run(&self, ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let body = &self.body;
        let state: Vec<Value> =
            (0..body.state_count).map(|item| inputs.take_value(item)).collect::<Result<_>>()?;
        let mut scanned: Vec<(Tensor, usize)> = Vec::new();
        for (item, &along) in self.input_axes.iter().enumerate() {
            let input = inputs.take(body.state_count + item)?;
            let along = axis(along, input.rank())?;
            scanned.push((input, along));
        }
        let length = scanned.first().map_or(0, |(input, along)| input.shape()[*along]);
        if scanned.iter().any(|(input, along)| input.shape()[*along] != length) {
            return Err(Error::invalid("the inputs of a Scan must have one length"));
        }
        if length == 0 {
            let slices = scanned.iter().map(|(input, along)| zeros_like_slice(input, *along));
            let sample = body.sample(ctx, state.clone(), slices)?;
            let mut outputs: Outputs = state.into();
            for (value, &along) in sample.iter().zip(&self.output_axes) {
                outputs.push(empty_stack(value, along)?);
            }
            return Ok(outputs);
        }
        let (state, lists) = body.run(ctx, state, length, |item, step| {
            let (input, along) = &scanned[item];
            let step = if self.input_reversed[item] { length - 1 - step } else { step };
            slice_at(ctx, input, *along, step)
        })?;
        let mut outputs: Outputs = state.into();
        for (item, mut list) in lists.into_iter().enumerate() {
            if self.output_reversed[item] {
                list.reverse();
            }
            outputs.push(stack(ctx, list, self.output_axes[item])?.into());
        }
        Ok(outputs)
    }
}

/// Opset 8: a batch in front of everything, and a length for each member.
pub(super) struct BatchedScan {
    body: Body,
    reversed: Vec<bool>,
}

impl BatchedScan {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let body = Body::of(node, node.inputs.len().saturating_sub(1))?;
        let ways = list_or_zeros(&Attributes(node), "directions", body.scan_input_count)?;
        Ok(Box::new(Self { body, reversed: ways.iter().map(|&way| way == 1).collect() }))
    }

    fn lengths(&self, inputs: &Inputs<'_>, batch: usize, most: usize) -> Result<Vec<usize>> {
        let Some(tensor) = inputs.optional(0)? else {
            return Ok(vec![most; batch]);
        };
        let lengths = crate::cpu::ops::layout::dims(&integers(tensor)?)?;
        if lengths.len() != batch || lengths.iter().any(|&length| length > most) {
            return Err(Error::invalid(format!(
                "sequence_lens {lengths:?} do not fit {batch} sequences of {most}"
            )));
        }
        Ok(lengths.to_vec())
    }
}

impl Operator for BatchedScan {
    fn run(&self, ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let body = &self.body;
        let first = 1 + body.state_count;
        let &[batch, most, ..] = inputs.tensor(first)?.shape() else {
            return Err(Error::invalid("Scan-8 takes inputs of shape [batch, length, ...]"));
        };
        let lengths = self.lengths(&inputs, batch, most)?;
        let given: Vec<Tensor> = (1..first + body.scan_input_count)
            .map(|item| inputs.take(item))
            .collect::<Result<_>>()?;
        let (states, scanned) = given.split_at(body.state_count);
        let fits = states.iter().all(|state| state.shape().first() == Some(&batch))
            && scanned.iter().all(|input| input.shape().get(..2) == Some(&[batch, most]));
        if !fits || batch == 0 || most == 0 {
            return Err(Error::invalid(
                "the inputs of Scan-8 must have one batch and length, not 0",
            ));
        }
        let mut final_states = vec![Vec::new(); body.state_count];
        let mut rows = vec![Vec::new(); body.scan_output_count];
        for (member, &length) in lengths.iter().enumerate() {
            let state: Vec<Value> = states
                .iter()
                .map(|state| slice_at(ctx, state, 0, member).map(Value::from))
                .collect::<Result<_>>()?;
            let (state, lists) = body.run(ctx, state, length, |item, step| {
                let step = if self.reversed[item] { length - 1 - step } else { step };
                slice_at(ctx, &slice_at(ctx, &scanned[item], 0, member)?, 0, step)
            })?;
            for (list, value) in final_states.iter_mut().zip(state) {
                list.push(value.into_tensor()?);
            }
            for (row, mut list) in rows.iter_mut().zip(lists) {
                let Some(sample) = list.first() else {
                    return Err(Error::unsupported("Scan-8 with a sequence of length 0"));
                };
                let padding = Tensor::zeros(sample.dtype(), sample.shape())?;
                list.resize(most, padding);
                row.push(stack(ctx, list, 0)?);
            }
        }
        let lists = final_states.into_iter().chain(rows);
        lists.map(|list| stack(ctx, list, 0).map(Value::from)).collect()
    }
}
