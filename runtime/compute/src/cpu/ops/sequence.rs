//! Sequences and optionals.

use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{View, axis, copy_view, dim, dims, index, integers, one_integer};
use crate::cpu::ops::shape_ops::concatenate;
use mortise_types::{Error, GraphBody, NodeDef, Result, Shape, Tensor, Value};
use smallvec::smallvec;
use std::sync::Arc;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "ConcatFromSequence", since: 11, build: ConcatFromSequence::build },
    Entry { op: "Optional", since: 15, build: |_| Ok(Box::new(MakeOptional)) },
    Entry { op: "OptionalGetElement", since: 15, build: |_| Ok(Box::new(OptionalGetElement)) },
    Entry { op: "OptionalHasElement", since: 15, build: |_| Ok(Box::new(OptionalHasElement)) },
    Entry { op: "SequenceAt", since: 11, build: |_| Ok(Box::new(SequenceAt)) },
    Entry { op: "SequenceConstruct", since: 11, build: |_| Ok(Box::new(SequenceConstruct)) },
    Entry { op: "SequenceEmpty", since: 11, build: |_| Ok(Box::new(SequenceEmpty)) },
    Entry { op: "SequenceErase", since: 11, build: |_| Ok(Box::new(SequenceErase)) },
    Entry { op: "SequenceInsert", since: 11, build: |_| Ok(Box::new(SequenceInsert)) },
    Entry { op: "SequenceLength", since: 11, build: |_| Ok(Box::new(SequenceLength)) },
    Entry { op: "SequenceMap", since: 17, build: SequenceMap::build },
    Entry { op: "SplitToSequence", since: 11, build: SplitToSequence::build },
];

fn items<'a>(inputs: &'a Inputs<'_>, position: usize) -> Result<&'a [Value]> {
    match inputs.value(position)? {
        Value::Sequence(items) => Ok(items),
        other => Err(Error::invalid(format!("expected a sequence, got {}", other.kind_name()))),
    }
}

/// The sequence for changing; copied only when somebody else holds it too.
fn take_items(inputs: &mut Inputs<'_>, position: usize) -> Result<Vec<Value>> {
    match inputs.take_value(position)? {
        Value::Sequence(items) => Ok(Arc::unwrap_or_clone(items)),
        other => Err(Error::invalid(format!("expected a sequence, got {}", other.kind_name()))),
    }
}

fn sequence(items: Vec<Value>) -> Outputs {
    smallvec![Value::Sequence(Arc::new(items))]
}

struct SequenceConstruct;

impl Operator for SequenceConstruct {
    fn run(&self, _ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let count = inputs.len();
        let items: Vec<Value> =
            (0..count).map(|item| inputs.take_value(item)).collect::<Result<_>>()?;
        Ok(sequence(items))
    }
}

struct SequenceEmpty;

impl Operator for SequenceEmpty {
    fn run(&self, _ctx: &OpContext<'_>, _inputs: Inputs<'_>) -> Result<Outputs> {
        Ok(sequence(Vec::new()))
    }
}

struct SequenceLength;

impl Operator for SequenceLength {
    fn run(&self, _ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        Ok(smallvec![Tensor::scalar(items(&inputs, 0)?.len() as i64).into()])
    }
}

struct SequenceAt;

impl Operator for SequenceAt {
    fn run(&self, _ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let items = items(&inputs, 0)?;
        let at = index(one_integer(inputs.tensor(1)?)?, items.len())?;
        Ok(smallvec![items[at].clone()])
    }
}

struct SequenceErase;

impl Operator for SequenceErase {
    fn run(&self, _ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let mut items = take_items(&mut inputs, 0)?;
        let at = match inputs.optional(1)? {
            Some(tensor) => one_integer(tensor)?,
            None => -1,
        };
        items.remove(index(at, items.len())?);
        Ok(sequence(items))
    }
}

struct SequenceInsert;

impl Operator for SequenceInsert {
    fn run(&self, _ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let mut items = take_items(&mut inputs, 0)?;
        let value = inputs.take_value(1)?;
        let at = match inputs.optional(2)? {
            Some(tensor) => one_integer(tensor)?,
            None => items.len() as i64,
        };
        // One past the end is a place too.
        let at = if at == items.len() as i64 { items.len() } else { index(at, items.len())? };
        items.insert(at, value);
        Ok(sequence(items))
    }
}

struct ConcatFromSequence {
    axis: i64,
    new_axis: bool,
}

impl ConcatFromSequence {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        Ok(Box::new(Self {
            axis: attributes.int_or("axis", 0)?,
            new_axis: attributes.int_or("new_axis", 0)? != 0,
        }))
    }
}

impl Operator for ConcatFromSequence {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let mut parts: Vec<Tensor> =
            items(&inputs, 0)?.iter().map(|item| item.tensor().cloned()).collect::<Result<_>>()?;
        let mut along = self.axis;
        if self.new_axis {
            let rank = parts.first().map_or(0, Tensor::rank);
            let at = axis(self.axis, rank + 1)?;
            along = at as i64;
            for part in &mut parts {
                let mut shape: Shape = part.shape().into();
                shape.insert(at.min(shape.len()), 1);
                *part = part.clone().reshaped(&shape)?;
            }
        }
        let parts: Vec<&Tensor> = parts.iter().collect();
        Ok(smallvec![concatenate(ctx, &parts, along)?.into()])
    }
}

struct SplitToSequence {
    axis: i64,
    keep: bool,
}

impl SplitToSequence {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        Ok(Box::new(Self {
            axis: attributes.int_or("axis", 0)?,
            keep: attributes.int_or("keepdims", 1)? != 0,
        }))
    }

    fn sizes(split: Option<&Tensor>, size: usize) -> Result<Vec<usize>> {
        match split {
            None => Ok(vec![1; size]),
            Some(tensor) if tensor.rank() == 0 => {
                let part = dim(one_integer(tensor)?)?;
                if part == 0 {
                    return Err(Error::invalid("a split of 0 never ends"));
                }
                Ok((0..size).step_by(part).map(|at| part.min(size - at)).collect())
            }
            Some(tensor) => {
                let sizes = dims(&integers(tensor)?)?;
                let total = sizes.iter().try_fold(0usize, |sum, &part| sum.checked_add(part));
                if total != Some(size) {
                    return Err(Error::invalid(format!("cannot split {size} into {sizes:?}")));
                }
                Ok(sizes.to_vec())
            }
        }
    }
}

impl Operator for SplitToSequence {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (input, split) = (inputs.tensor(0)?, inputs.optional(1)?);
        let along = axis(self.axis, input.rank())?;
        let sizes = Self::sizes(split, input.shape()[along])?;
        let mut view = View::of(input.shape());
        let mut parts = Vec::with_capacity(sizes.len());
        for size in sizes {
            view.shape[along] = size;
            let mut shape = view.shape.clone();
            if split.is_none() && !self.keep {
                shape.remove(along);
            }
            parts.push(copy_view(ctx, input, &view, &shape)?.into());
            view.offset += size as isize * view.strides[along];
        }
        Ok(sequence(parts))
    }
}

/// Runs a subgraph for every item; further inputs are sequences too, or the
/// same for every item.
struct SequenceMap(Arc<GraphBody>);

impl SequenceMap {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(Attributes(node).graph("body")?)))
    }
}

impl Operator for SequenceMap {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let runner = ctx.subgraphs.ok_or_else(|| Error::internal("nobody runs subgraphs here"))?;
        let mut lists: Vec<Vec<Value>> = vec![Vec::new(); self.0.outputs.len()];
        for at in 0..items(&inputs, 0)?.len() {
            ctx.control.take_iterations(1)?;
            let mut arguments = Vec::with_capacity(inputs.len());
            for position in 0..inputs.len() {
                arguments.push(match inputs.value(position)? {
                    Value::Sequence(items) => items.get(at).cloned().ok_or_else(|| {
                        Error::invalid(format!("sequence {position} has no item {at}"))
                    })?,
                    other => other.clone(),
                });
            }
            for (list, value) in lists.iter_mut().zip(runner.run_body(&self.0, arguments)?) {
                list.push(value);
            }
        }
        Ok(lists.into_iter().map(|list| Value::Sequence(Arc::new(list))).collect())
    }
}

struct MakeOptional;

impl Operator for MakeOptional {
    fn run(&self, _ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let value = inputs.take_value(0).ok().map(Box::new);
        Ok(smallvec![Value::Optional(value)])
    }
}

/// Tensors and sequences count as optionals that are there.
struct OptionalGetElement;

impl Operator for OptionalGetElement {
    fn run(&self, _ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        match inputs.take_value(0)? {
            Value::Optional(Some(value)) => Ok(smallvec![*value]),
            Value::Optional(None) => Err(Error::invalid("the optional is empty")),
            other => Ok(smallvec![other]),
        }
    }
}

struct OptionalHasElement;

impl Operator for OptionalHasElement {
    fn run(&self, _ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let there = !matches!(inputs.optional_value(0), None | Some(Value::Optional(None)));
        Ok(smallvec![Tensor::from_bools(&[], vec![u8::from(there)])?.into()])
    }
}
