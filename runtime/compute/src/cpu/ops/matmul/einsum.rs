//! `Einsum`: sums of products over labelled dimensions.

use super::number::{Number, by_numeric};
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use mortise_types::{Error, NodeDef, Result, Shape, Tensor};
use smallvec::{SmallVec, smallvec};
use std::collections::BTreeMap;

/// Labels of each operand and of the result. The dimensions under `...` get
/// labels of their own, counted from the right.
struct Einsum {
    operands: Vec<Vec<Label>>,
    output: Option<Vec<Label>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Ellipsis,
    /// The n-th dimension under an ellipsis, from the right.
    Under(usize),
    Letter(char),
}

pub(crate) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
    let equation = Attributes(node)
        .text("equation")?
        .ok_or_else(|| Error::invalid(format!("{}: no equation", node.describe())))?;
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (equation, None),
    };
    let operands = left.split(',').map(labels).collect::<Result<_>>()?;
    Ok(Box::new(Einsum { operands, output: right.map(labels).transpose()? }))
}

fn labels(term: &str) -> Result<Vec<Label>> {
    let mut labels = Vec::new();
    let mut rest = term.trim();
    while let Some(first) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("...") {
            labels.push(Label::Ellipsis);
            rest = after;
            continue;
        }
        match first {
            ' ' => {}
            letter if letter.is_ascii_alphabetic() => labels.push(Label::Letter(letter)),
            other => return Err(Error::invalid(format!("Einsum: \"{other}\" in the equation"))),
        }
        rest = &rest[1..];
    }
    Ok(labels)
}

/// Products between two looks at the clock.
const CHECK_EVERY: usize = 1 << 16;

/// The loops of one run: sizes, and how far each step moves in each operand.
struct Loops {
    output: Shape,
    /// Output dimensions first, then the summed ones.
    sizes: Shape,
    /// By operand, then by loop.
    strides: SmallVec<[Shape; 2]>,
}

impl Einsum {
    fn loops(&self, shapes: &[&[usize]]) -> Result<Loops> {
        if shapes.len() != self.operands.len() {
            let (want, got) = (self.operands.len(), shapes.len());
            return Err(Error::invalid(format!("the equation has {want} operands, got {got}")));
        }
        let terms: Vec<Vec<Label>> = self
            .operands
            .iter()
            .zip(shapes)
            .map(|(labels, shape)| expand(labels, shape.len()))
            .collect::<Result<_>>()?;
        let sizes = label_sizes(&terms, shapes)?;
        let output = self.output_labels(&sizes, &terms);
        if let Some(label) = output.iter().find(|label| !sizes.contains_key(label)) {
            return Err(Error::invalid(format!("output label {label:?} is in no operand")));
        }
        if let Some(label) = (1..output.len()).find(|at| output[..*at].contains(&output[*at])) {
            let label = output[label];
            return Err(Error::invalid(format!("output label {label:?} is there twice")));
        }
        let summed = sizes.keys().filter(|label| !output.contains(label));
        let order: Vec<Label> = output.iter().chain(summed).copied().collect();
        let strides = terms
            .iter()
            .zip(shapes)
            .map(|(term, shape)| loop_strides(&order, term, shape))
            .collect();
        Ok(Loops {
            output: output.iter().map(|label| sizes[label]).collect(),
            sizes: order.iter().map(|label| sizes[label]).collect(),
            strides,
        })
    }

    /// As written, or else the ellipsis and every letter that occurs once.
    fn output_labels(&self, sizes: &BTreeMap<Label, usize>, terms: &[Vec<Label>]) -> Vec<Label> {
        let mut under: Vec<Label> =
            sizes.keys().copied().filter(|label| matches!(label, Label::Under(_))).collect();
        under.reverse();
        let Some(written) = &self.output else {
            let once = |label: &&Label| {
                let uses = terms.iter().flatten().filter(|other| other == label).count();
                matches!(label, Label::Letter(_)) && uses == 1
            };
            return under.iter().chain(sizes.keys().filter(once)).copied().collect();
        };
        let expand = |label: &Label| match label {
            Label::Ellipsis => under.clone(),
            other => vec![*other],
        };
        written.iter().flat_map(expand).collect()
    }
}

fn expand(labels: &[Label], rank: usize) -> Result<Vec<Label>> {
    let letters = labels.iter().filter(|label| **label != Label::Ellipsis).count();
    let ellipses = labels.len() - letters;
    let fits = if ellipses == 0 { letters == rank } else { ellipses == 1 && letters <= rank };
    if !fits {
        return Err(Error::invalid(format!("{labels:?} does not fit an operand of rank {rank}")));
    }
    let under = rank - letters;
    let each = |label: &Label| match label {
        Label::Ellipsis => (0..under).rev().map(Label::Under).collect(),
        other => vec![*other],
    };
    Ok(labels.iter().flat_map(each).collect())
}

fn label_sizes(terms: &[Vec<Label>], shapes: &[&[usize]]) -> Result<BTreeMap<Label, usize>> {
    let mut sizes = BTreeMap::new();
    for (label, &size) in terms.iter().flatten().zip(shapes.iter().copied().flatten()) {
        let known = sizes.entry(*label).or_insert(size);
        if *known == 1 {
            *known = size;
        } else if size != 1 && size != *known {
            return Err(Error::invalid(format!("{label:?} has sizes {known} and {size}")));
        }
    }
    Ok(sizes)
}

fn loop_strides(order: &[Label], term: &[Label], shape: &[usize]) -> Shape {
    let mut strides = Shape::from_elem(0, order.len());
    let mut stride = 1;
    for (label, &size) in term.iter().zip(shape).rev() {
        if let Some(at) = order.iter().position(|other| other == label)
            && size != 1
        {
            strides[at] += stride;
        }
        stride *= size;
    }
    strides
}

impl Operator for Einsum {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let tensors: Vec<&Tensor> =
            (0..inputs.len()).map(|index| inputs.tensor(index)).collect::<Result<_>>()?;
        let shapes: Vec<&[usize]> = tensors.iter().map(|tensor| tensor.shape()).collect();
        let loops = self.loops(&shapes)?;
        let dtype = inputs.tensor(0)?.dtype();
        let output = by_numeric!(dtype, "Einsum", T => loops.sum::<T>(ctx, &tensors))?;
        Ok(smallvec![output.into()])
    }
}

impl Loops {
    fn sum<T: Number>(&self, ctx: &OpContext<'_>, tensors: &[&Tensor]) -> Result<Tensor> {
        let data: Vec<&[T]> = tensors.iter().map(|t| t.as_slice::<T>()).collect::<Result<_>>()?;
        let mut output = ctx.allocate(T::DTYPE, &self.output)?;
        let (outer, inner) = self.sizes.split_at(self.output.len());
        let inner_count = inner
            .iter()
            .try_fold(1usize, |count, &size| count.checked_mul(size))
            .ok_or_else(|| Error::limit("Einsum: the summed dimensions are too large"))?;
        let mut base: SmallVec<[usize; 2]> = SmallVec::from_elem(0, data.len());
        for (flat, out) in output.as_mut_slice::<T>()?.iter_mut().enumerate() {
            ctx.control.check()?;
            self.offsets(flat, outer, 0, &mut base);
            *out = self.one(ctx, &data, &base, (inner, inner_count))?;
        }
        Ok(output)
    }

    fn one<T: Number>(
        &self,
        ctx: &OpContext<'_>,
        data: &[&[T]],
        base: &[usize],
        (inner, count): (&[usize], usize),
    ) -> Result<T> {
        let mut at: SmallVec<[usize; 2]> = SmallVec::from_elem(0, data.len());
        let mut sum = T::zero();
        for flat in 0..count {
            if flat % CHECK_EVERY == CHECK_EVERY - 1 {
                ctx.control.check()?;
            }
            self.offsets(flat, inner, self.output.len(), &mut at);
            let mut factors = data.iter().zip(base.iter().zip(&at)).map(|(d, (b, a))| d[b + a]);
            let first = factors.next().unwrap_or(T::zero());
            sum = sum.add(factors.fold(first, |product, factor| product.mul(factor)));
        }
        Ok(sum)
    }

    /// Offsets of position `flat` in the loops `sizes`, which start at `first`.
    fn offsets(&self, flat: usize, sizes: &[usize], first: usize, at: &mut [usize]) {
        at.fill(0);
        let mut rest = flat;
        for (axis, &size) in sizes.iter().enumerate().rev() {
            let index = rest % size;
            rest /= size;
            for (at, strides) in at.iter_mut().zip(&self.strides) {
                *at += index * strides[first + axis];
            }
        }
    }
}
