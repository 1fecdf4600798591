//! Products with weights in half precision: `MatMulHalf`.

use super::linear::float_values;
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::Activation;
use crate::cpu::ops::matmul::{GEMM, fused_activation};
use half::slice::HalfFloatSliceExt as _;
use mortise_types::{DType, Error, NodeDef, Result, Shape, f16};
use rten_gemm::{GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::NdTensorView;
use smallvec::smallvec;

/// `activation(A · B + bias)` of A `[…, depth]` in f32, B `[depth, columns]` in
/// f16 and bias `[columns]`, which may be absent. Sums are single.
pub(super) struct MatMulHalf {
    activation: Option<Activation>,
}

/// Weights that are floats at a time: they stay in the cache, and no copy of
/// all of them is ever made.
const ELEMENTS: usize = 64 << 10;

impl MatMulHalf {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self { activation: fused_activation(&Attributes(node))? }))
    }
}

impl Operator for MatMulHalf {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (a, b) = (inputs.tensor(0)?, inputs.tensor(1)?);
        let bias = inputs.optional(2)?.map(float_values).transpose()?;
        let (&[ref outer @ .., last], &[depth, columns]) = (a.shape(), b.shape()) else {
            return Err(Error::invalid(format!("cannot multiply {a:?} and {b:?}")));
        };
        if last != depth || bias.as_ref().is_some_and(|bias| bias.len() != columns) {
            return Err(Error::invalid(format!("{a:?} does not fit weights {b:?}")));
        }
        let mut shape: Shape = outer.into();
        shape.push(columns);
        let mut output = ctx.allocate(DType::F32, &shape)?;
        let floats = output.as_mut_slice::<f32>()?;
        if columns > 0 {
            let bias = bias.as_deref();
            floats.chunks_exact_mut(columns).for_each(|line| match bias {
                Some(bias) => line.copy_from_slice(bias),
                None => line.fill(0.0),
            });
        }
        if depth > 0 && columns > 0 && !floats.is_empty() {
            let rows = floats.len() / columns;
            let a = NdTensorView::from_data([rows, depth], a.as_slice::<f32>()?);
            add_product(ctx, a, b.as_slice()?, columns, floats)?;
        }
        if let Some(activation) = self.activation {
            activation.map_f32(floats);
        }
        Ok(smallvec![output.into()])
    }
}

/// Adds the product to `sums`, some rows of the weights at a time.
fn add_product(
    ctx: &OpContext<'_>,
    a: NdTensorView<'_, f32, 2>,
    weights: &[f16],
    columns: usize,
    sums: &mut [f32],
) -> Result<()> {
    let step = (ELEMENTS / columns).max(16);
    let mut wide = vec![0.0f32; step.min(weights.len() / columns) * columns];
    for (at, halves) in weights.chunks(step * columns).enumerate() {
        ctx.control.check()?;
        let wide = &mut wide[..halves.len()];
        halves.convert_to_f32_slice(wide);
        let depth = halves.len() / columns;
        let left = a.slice((.., at * step..at * step + depth));
        let right = NdTensorView::from_data([depth, columns], &*wide);
        let options = GemmOptions { beta: 1.0, ..GemmOptions::default() };
        GEMM.with(|gemm| {
            gemm.gemm(sums, GemmInputA::Unpacked(left), GemmInputB::Unpacked(right), options)
        })
        .map_err(|error| Error::internal(format!("the product failed: {error}")))?;
    }
    Ok(())
}
