//! The same bits under another type.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use mortise_types::{DType, Error, NodeDef, Result, Tensor};
use smallvec::smallvec;

pub(super) struct BitCast(DType);

impl BitCast {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let number = Attributes(node).int("to")?;
        let to = number.and_then(|to| DType::from_onnx(i32::try_from(to).ok()?));
        to.filter(|to| *to != DType::String).map(|to| Box::new(Self(to)) as _).ok_or_else(|| {
            Error::invalid(format!("{}: to = {number:?} has no bits", node.describe()))
        })
    }
}

impl Operator for BitCast {
    fn run(&self, _ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (input, to) = (inputs.tensor(0)?, self.0);
        let storage = input.storage().filter(|_| input.dtype().bits() == to.bits());
        let storage = storage.ok_or_else(|| {
            Error::invalid(format!("{} and {to} differ in their bits", input.dtype()))
        })?;
        let output = match to {
            DType::Bool => Tensor::from_bools(input.shape(), storage.as_bytes().to_vec())?,
            _ => Tensor::from_storage(to, input.shape(), storage.clone())?,
        };
        Ok(smallvec![output.into()])
    }
}
