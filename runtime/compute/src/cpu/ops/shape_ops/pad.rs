//! `Pad`: more, or with negative counts fewer, elements around a tensor.

use super::reshape::attribute_or_input;
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{
    StringsOut, axes, by_width, cells, cells_mut, element_count, strides,
};
use mortise_types::{DType, Error, NodeDef, Result, Shape, Tensor};
use smallvec::{SmallVec, smallvec};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Constant,
    Reflect,
    Edge,
    Wrap,
}

pub(super) struct Pad {
    mode: Mode,
    /// Attributes before opset 11, inputs since.
    pads: Option<Vec<i64>>,
    value: f32,
}

impl Pad {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let mode = match attributes.text("mode")?.unwrap_or("constant") {
            "constant" => Mode::Constant,
            "reflect" => Mode::Reflect,
            "edge" => Mode::Edge,
            "wrap" => Mode::Wrap,
            other => return Err(Error::unsupported(format!("mode \"{other}\""))),
        };
        let pads = attributes.ints("pads")?.or(attributes.ints("paddings")?);
        Ok(Box::new(Self {
            mode,
            pads: pads.map(<[i64]>::to_vec),
            value: attributes.float_or("value", 0.0)?,
        }))
    }

    /// Elements before and after, per dimension.
    fn amounts(&self, inputs: &Inputs<'_>, rank: usize) -> Result<SmallVec<[[i64; 2]; 6]>> {
        let pads = attribute_or_input(self.pads.as_deref(), inputs, 1)?
            .ok_or_else(|| Error::invalid("the pads are missing"))?;
        let named = match attribute_or_input(None, inputs, 3)? {
            Some(list) => axes(&list, rank)?,
            None => (0..rank).collect(),
        };
        if pads.len() != named.len() * 2 {
            return Err(Error::invalid(format!(
                "{} pads for {} axes: give two per axis",
                pads.len(),
                named.len()
            )));
        }
        let mut amounts = smallvec![[0, 0]; rank];
        for (item, &along) in named.iter().enumerate() {
            amounts[along] = [pads[item], pads[item + named.len()]];
        }
        Ok(amounts)
    }

    fn fill_value(&self, inputs: &Inputs<'_>, dtype: DType) -> Result<Tensor> {
        let given = if self.pads.is_none() { inputs.optional(2)? } else { None };
        match given {
            Some(value) if value.dtype() != dtype || value.len() != 1 => {
                Err(Error::invalid(format!("the constant must be one {dtype}, got {value:?}")))
            }
            Some(value) => Ok(value.clone()),
            None if dtype == DType::F32 => Ok(Tensor::scalar(self.value)),
            None if dtype == DType::F64 => Ok(Tensor::scalar(f64::from(self.value))),
            None => Tensor::zeros(dtype, &[1]),
        }
    }

    /// For every index along a dimension of the output, that of the input.
    fn source(&self, size: usize, [before, after]: [i64; 2]) -> Result<Vec<Option<usize>>> {
        let whole = size as i64;
        let total = whole
            .checked_add(before)
            .and_then(|total| total.checked_add(after))
            .filter(|&total| total >= 0);
        let total = total.ok_or_else(|| {
            Error::invalid(format!("pads {before} and {after} leave nothing of size {size}"))
        })?;
        // What negative pads leave; the rest repeats only that.
        let (first, end) = ((-before).max(0), whole + after.min(0));
        let kept = end - first;
        if self.mode != Mode::Constant && kept <= 0 && total > 0 {
            return Err(Error::invalid(format!("there is nothing to repeat in size {size}")));
        }
        Ok((0..total)
            .map(|at| {
                let at = at - before.max(0);
                self.wrapped(at, kept).map(|at| (first + at) as usize)
            })
            .collect())
    }

    fn wrapped(&self, at: i64, kept: i64) -> Option<i64> {
        if (0..kept).contains(&at) {
            return Some(at);
        }
        match self.mode {
            Mode::Constant => None,
            Mode::Edge => Some(at.clamp(0, kept - 1)),
            Mode::Wrap => Some(at.rem_euclid(kept)),
            Mode::Reflect if kept == 1 => Some(0),
            Mode::Reflect => {
                let period = 2 * (kept - 1);
                let at = at.rem_euclid(period);
                Some(at.min(period - at))
            }
        }
    }
}

/// Most elements that one pad may add, so that the lists of sources stay
/// small.
const MAX_SIZE: i64 = 1 << 22;

impl Operator for Pad {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let amounts = self.amounts(&inputs, input.rank())?;
        if amounts.iter().flatten().any(|&amount| amount.abs() > MAX_SIZE) {
            return Err(Error::limit(format!("pads may be at most {MAX_SIZE}")));
        }
        let value = self.fill_value(&inputs, input.dtype())?;
        let shape: Shape = input
            .shape()
            .iter()
            .zip(&amounts)
            .map(|(&size, [before, after])| (size as i64 + before + after).max(0) as usize)
            .collect();
        let mut strings = None;
        let mut output = None;
        if input.dtype() == DType::String {
            strings = Some(StringsOut::new(element_count(&shape)?)?);
        } else {
            output = Some(ctx.allocate(input.dtype(), &shape)?);
        }
        if shape.contains(&0)
            && let Some(output) = output
        {
            return Ok(smallvec![output.into()]);
        }
        let sources: Vec<Vec<Option<usize>>> = input
            .shape()
            .iter()
            .zip(&amounts)
            .map(|(&size, &amount)| self.source(size, amount))
            .collect::<Result<_>>()?;
        if let Some(mut strings) = strings {
            let (items, value) = (input.strings()?, value.strings()?);
            let mut result = Ok(());
            for_each_element(input.shape(), &sources, |from| {
                if result.is_ok() {
                    result = strings.push(from.map_or_else(|| value.get(0), |at| items.get(at)));
                }
            });
            result?;
            return Ok(smallvec![strings.finish(&shape)?.into()]);
        }
        let mut output = output.ok_or_else(|| Error::internal("no output was made"))?;
        by_width!(input.dtype(), T => {
            let items = cells::<T>(input)?;
            let value = cells::<T>(&value)?.first().copied().unwrap_or_default();
            let mut rest = cells_mut::<T>(&mut output)?.iter_mut();
            for_each_element(input.shape(), &sources, |from| {
                if let Some(cell) = rest.next() {
                    *cell = from.and_then(|at| items.get(at).copied()).unwrap_or(value);
                }
            });
            Ok(())
        })?;
        Ok(smallvec![output.into()])
    }
}

/// Visits the output's elements in order with where each comes from.
fn for_each_element(
    shape: &[usize],
    sources: &[Vec<Option<usize>>],
    mut visit: impl FnMut(Option<usize>),
) {
    let steps = strides(shape);
    let Some((inner, outer)) = sources.split_last() else {
        return visit(Some(0));
    };
    if sources.iter().any(Vec::is_empty) {
        return;
    }
    let mut index: SmallVec<[usize; 6]> = smallvec![0; outer.len()];
    loop {
        let base = outer.iter().enumerate().try_fold(0, |sum, (item, source)| {
            source[index[item]].map(|at| sum + at * steps[item])
        });
        for from in inner {
            visit(base.and_then(|base| from.map(|at| base + at)));
        }
        let mut item = outer.len();
        loop {
            if item == 0 {
                return;
            }
            item -= 1;
            index[item] += 1;
            if index[item] < outer[item].len() {
                break;
            }
            index[item] = 0;
        }
    }
}
