//! Integer products that end as floats: `MatMulIntegerToFloat`.

use super::linear::float_values;
use super::product::{Packed, Stack, gemm, is_exact, right, sums_of_columns, take_off_rows};
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::Activation;
use crate::cpu::ops::matmul::fused_activation;
use crate::cpu::wide::{Loop, widest};
use mortise_types::{DType, Error, NodeDef, Result, Tensor, Value};
use rten_gemm::{GemmInputA, GemmInputB, GemmOptions, QuantParams};
use rten_tensor::NdTensorView;
use smallvec::smallvec;

/// `activation((A - a₀) · (B - b₀) · a_scale · b_scale + bias)` of the inputs
/// A, B, `a_scale`, `b_scale`, a₀, b₀ and bias; the last three may be absent.
pub(super) struct MatMulIntegerToFloat {
    activation: Option<Activation>,
    /// B, packed at compile time when it is a constant without zero points.
    packed: Option<Columns>,
}

/// B in the layout of the kernels, and the sum of each column.
struct Columns {
    values: Packed,
    sums: Vec<i32>,
}

impl MatMulIntegerToFloat {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let activation = fused_activation(&Attributes(node))?;
        Ok(Box::new(Self { activation, packed: None }))
    }

    fn sums(&self, ctx: &OpContext<'_>, inputs: &Inputs<'_>, stack: &Stack) -> Result<Tensor> {
        let (a, b) = (inputs.tensor(0)?, inputs.tensor(1)?);
        let (a_zero, b_zero) = (inputs.optional(4)?, inputs.optional(5)?);
        match &self.packed {
            Some(packed) if a.dtype() == DType::U8 => packed_sums(ctx, a, a_zero, packed, stack),
            _ => stack.run(ctx, (a, a_zero), (b, b_zero)),
        }
    }
}

impl Operator for MatMulIntegerToFloat {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let stack = Stack::new(inputs.tensor(0)?.shape(), inputs.tensor(1)?.shape())?;
        let mut sums = self.sums(ctx, &inputs, &stack)?;
        let columns = stack.size[2];
        let left = float_values(inputs.tensor(2)?)?;
        let right = float_values(inputs.tensor(3)?)?;
        let bias = inputs.optional(6)?.map(float_values).transpose()?;
        let &[left] = &*left else {
            return Err(Error::invalid("the scale of A must be one number"));
        };
        let fits = |len: usize| len == columns;
        if !(right.len() == 1 || fits(right.len())) || bias.as_ref().is_some_and(|b| !fits(b.len()))
        {
            return Err(Error::invalid(format!("scales or bias do not fit {columns} columns")));
        }
        let factors: Vec<f32> = (0..columns)
            .map(|column| left * if right.len() == 1 { right[0] } else { right[column] })
            .collect();
        let mut output = ctx.allocate(DType::F32, sums.shape())?;
        if columns > 0 {
            let floats = output.as_mut_slice::<f32>()?;
            let sums = sums.as_mut_slice::<i32>()?;
            widest(ToFloats { sums, factors: &factors, bias: bias.as_deref(), floats });
            if let Some(activation) = self.activation {
                activation.map_f32(floats);
            }
        }
        Ok(smallvec![output.into()])
    }

    fn prepare(&mut self, constants: &[Option<Value>]) -> Result<()> {
        let constant = |at: usize| match constants.get(at) {
            Some(Some(Value::Tensor(tensor))) => Some(tensor),
            _ => None,
        };
        let Some(b) = constant(1).filter(|b| b.rank() == 2 && !b.is_empty()) else { return Ok(()) };
        let (depth, columns) = (b.shape()[0], b.shape()[1]);
        let side = right(b, constant(5), columns)?;
        if side.zeros.iter().all(|zero| *zero == 0) {
            let values = Packed::new(&side.values, [depth, columns]);
            self.packed =
                Some(Columns { values, sums: sums_of_columns(&side.values, &side.zeros) });
        }
        Ok(())
    }

    fn packed_bytes(&self) -> usize {
        let bytes = |Columns { values, sums }: &Columns| values.bytes() + size_of_val(&**sums);
        self.packed.as_ref().map_or(0, bytes)
    }
}

/// The sums of one tall product with packed columns.
fn packed_sums(
    ctx: &OpContext<'_>,
    a: &Tensor,
    zero: Option<&Tensor>,
    packed: &Columns,
    stack: &Stack,
) -> Result<Tensor> {
    let mut sums = ctx.allocate(DType::I32, &stack.shape)?;
    let depth = packed.values.depth();
    let rows = a.len() / depth;
    let zeros = stack.left_zeros(zero, rows)?;
    let values = a.as_slice::<u8>()?;
    ctx.control.check()?;
    let target = sums.as_mut_slice::<i32>()?;
    match &packed.values {
        Packed::Library(matrix) if is_exact() => {
            // The library takes the zero points off as it goes.
            let a_quant = Some(QuantParams { zero_point: &zeros });
            let options = GemmOptions { a_quant, ..GemmOptions::default() };
            let a = GemmInputA::Unpacked(NdTensorView::from_data([rows, depth], values));
            gemm(target, a, GemmInputB::Packed(matrix), options)?;
        }
        other => {
            other.multiply(values, target)?;
            take_off_rows(&zeros, &packed.sums, target);
        }
    }
    Ok(sums)
}

/// `sum · factor + bias`, row by row.
struct ToFloats<'a> {
    sums: &'a [i32],
    factors: &'a [f32],
    bias: Option<&'a [f32]>,
    floats: &'a mut [f32],
}

impl Loop for ToFloats<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let columns = self.factors.len();
        let rows = self.floats.chunks_exact_mut(columns).zip(self.sums.chunks_exact(columns));
        for (floats, sums) in rows {
            let cells = floats.iter_mut().zip(sums).zip(self.factors);
            match self.bias {
                Some(bias) => {
                    for (((float, sum), factor), bias) in cells.zip(bias) {
                        *float = *sum as f32 * factor + bias;
                    }
                }
                None => cells.for_each(|((float, sum), factor)| *float = *sum as f32 * factor),
            }
        }
    }
}
