//! Values that are there already.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{
    StringsOut, by_width, cells, cells_mut, dims, element_count, floats, integers,
};
use mortise_types::{Attribute, DType, Error, NodeDef, Result, Tensor};
use smallvec::smallvec;

/// Passes on tensors, sequences and optionals alike.
pub(super) struct Identity;

impl Operator for Identity {
    fn run(&self, _ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        Ok(smallvec![inputs.take_value(0)?])
    }
}

pub(super) struct Constant(Tensor);

impl Constant {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let strings = |list: &[Vec<u8>]| Tensor::from_strings(&[list.len()], list.iter().collect());
        let value = node.attributes.iter().find(|(name, _)| name.starts_with("value"));
        let tensor = match value.map(|(_, value)| value) {
            Some(Attribute::Tensor(tensor)) => tensor.clone(),
            Some(Attribute::Float(value)) => Tensor::scalar(*value),
            Some(Attribute::Int(value)) => Tensor::scalar(*value),
            Some(Attribute::Floats(list)) => Tensor::from_vec(&[list.len()], list.clone())?,
            Some(Attribute::Ints(list)) => Tensor::from_vec(&[list.len()], list.clone())?,
            Some(Attribute::String(text)) => {
                Tensor::from_strings(&[], std::iter::once(text).collect())?
            }
            Some(Attribute::Strings(list)) => strings(list)?,
            _ => return Err(Error::unsupported("a Constant without a dense value attribute")),
        };
        Ok(Box::new(Self(tensor)))
    }
}

impl Operator for Constant {
    fn run(&self, _ctx: &OpContext<'_>, _inputs: Inputs<'_>) -> Result<Outputs> {
        Ok(smallvec![self.0.clone().into()])
    }
}

pub(super) struct ConstantOfShape(Tensor);

impl ConstantOfShape {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let value = match Attributes(node).tensor("value")? {
            Some(tensor) => tensor.clone(),
            None => Tensor::scalar(0.0f32),
        };
        if value.len() != 1 {
            return Err(Error::invalid(format!("value must have one element, got {value:?}")));
        }
        Ok(Box::new(Self(value)))
    }
}

impl Operator for ConstantOfShape {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let shape = dims(&integers(inputs.tensor(0)?)?)?;
        Ok(smallvec![filled(ctx, &shape, &self.0)?.into()])
    }
}

/// A tensor of one element again and again.
pub(super) fn filled(ctx: &OpContext<'_>, shape: &[usize], value: &Tensor) -> Result<Tensor> {
    if value.dtype() == DType::String {
        let count = element_count(shape)?;
        let mut output = StringsOut::new(count)?;
        for _ in 0..count {
            output.push(value.strings()?.get(0))?;
        }
        return output.finish(shape);
    }
    let mut output = ctx.allocate(value.dtype(), shape)?;
    by_width!(value.dtype(), T => {
        let value = cells::<T>(value)?.first().copied().unwrap_or_default();
        cells_mut::<T>(&mut output)?.fill(value);
        Ok(())
    })?;
    Ok(output)
}

/// Dropout does nothing when a model only answers.
pub(super) struct Dropout {
    /// The mask has the type of the data.
    mask_like_data: bool,
}

impl Dropout {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self { mask_like_data: node.opset < 10 }))
    }
}

impl Operator for Dropout {
    fn run(&self, ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        if let Some(mode) = inputs.optional(2)?
            && mode.bool_bytes()?.iter().any(|&on| on != 0)
        {
            let ratio = inputs.optional(1)?.map(floats).transpose()?;
            if ratio.is_none_or(|ratio| ratio.iter().any(|&ratio| ratio != 0.0)) {
                return Err(Error::unsupported("Dropout in training mode"));
            }
        }
        let input = inputs.take(0)?;
        if ctx.output_count < 2 {
            return Ok(smallvec![input.into()]);
        }
        let one = match input.dtype() {
            DType::F32 if self.mask_like_data => Tensor::scalar(1.0f32),
            DType::F64 if self.mask_like_data => Tensor::scalar(1.0f64),
            _ => Tensor::from_bools(&[], vec![1])?,
        };
        let mask = filled(ctx, input.shape(), &one)?;
        Ok(smallvec![input.into(), mask.into()])
    }
}
