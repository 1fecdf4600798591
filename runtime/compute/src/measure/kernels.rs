//! Graphs of one kernel each, in sizes that occur in models.

use super::Arithmetic;
use mortise_types::{
    Attribute, DType, GraphDef, NodeDef, Result, Tensor, TensorSpec, ValueDef, ValueId,
    ValueSource, f16,
};
use std::sync::Arc;

/// One kernel in one size.
pub struct Kernel {
    pub name: &'static str,
    /// Of a product `m`, `n`, `k`; else of the input that is worked on.
    pub shape: Vec<usize>,
    /// In which the weights, or else the inputs, are stored.
    pub dtype: &'static str,
    pub arithmetic: Arithmetic,
    pub def: GraphDef,
    pub inputs: Vec<Tensor>,
}

/// How large kernels are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelSizes {
    /// As in models, and for what moves bytes more than a cache holds.
    Full,
    /// What a device that computes in software can do in seconds.
    Small,
}

/// Every kernel that is measured.
///
/// # Errors
/// When the memory for a tensor does not suffice.
pub fn kernels(sizes: KernelSizes) -> Result<Vec<Kernel>> {
    let (products, wide): (&[[usize; 3]], usize) = match sizes {
        KernelSizes::Full => {
            (&[[1, 4096, 4096], [32, 1024, 1024], [128, 3072, 768], [1024, 1024, 1024]], 4096)
        }
        KernelSizes::Small => (&[[1, 256, 256], [64, 128, 64]], 256),
    };
    let mut kernels = Vec::new();
    for make in [product_f32, product_f16, product_int8, product_int4] {
        for &shape in products {
            kernels.push(make(shape)?);
        }
    }
    let image = if sizes == KernelSizes::Full { 56 } else { 14 };
    for (name, channels, window, groups) in
        [("conv_3x3", 64, 3, 1), ("conv_1x1", 256, 1, 1), ("conv_depthwise", 128, 3, 128)]
    {
        kernels.push(conv(name, channels, image, window, groups)?);
    }
    let square = [wide, wide];
    kernels.push(attention(if sizes == KernelSizes::Full { 128 } else { 16 })?);
    kernels.push(rows("softmax", square, &|b, x| b.node("Softmax", &[x], vec![]))?);
    kernels.push(rows("layer_norm", square, &|b, x| {
        let (scale, shift) = (b.floats(&[wide])?, b.floats(&[wide])?);
        b.node("LayerNormalization", &[x, scale, shift], vec![])
    })?);
    kernels.push(rows("pointwise", square, &|b, x| {
        let row = b.floats(&[wide])?;
        let sum = b.node("Add", &[x, row], vec![])?;
        b.node("Relu", &[sum], vec![])
    })?);
    kernels.push(rows("transpose", square, &|b, x| {
        b.node("Transpose", &[x], vec![("perm", Attribute::Ints(vec![1, 0]))])
    })?);
    kernels.push(rows("reduce_mean", square, &|b, x| {
        let axes = b.constant(Tensor::from_vec(&[1], vec![1i64])?);
        b.node("ReduceMean", &[x, axes], vec![])
    })?);
    kernels.push(gather(wide)?);
    Ok(kernels)
}

fn product(
    [m, n, k]: [usize; 3],
    dtype: &'static str,
    arithmetic: Arithmetic,
    build: &dyn Fn(&mut Builder, ValueId) -> Result<ValueId>,
) -> Result<Kernel> {
    let mut builder = Builder::default();
    let values = filled(m * k);
    let input = match arithmetic {
        Arithmetic::F16 => {
            let halves = values.into_iter().map(f16::from_f32).collect();
            Tensor::from_vec(&[m, k], halves)?
        }
        _ => Tensor::from_vec(&[m, k], values)?,
    };
    let x = builder.input(&input);
    let y = build(&mut builder, x)?;
    let def = builder.finish(y);
    let (name, shape) = ("matmul", vec![m, n, k]);
    Ok(Kernel { name, shape, dtype, arithmetic, def, inputs: vec![input] })
}

fn product_f32([m, n, k]: [usize; 3]) -> Result<Kernel> {
    product([m, n, k], "f32", Arithmetic::F32, &|b, x| {
        let weights = b.floats(&[k, n])?;
        b.node("MatMul", &[x, weights], vec![])
    })
}

fn product_f16([m, n, k]: [usize; 3]) -> Result<Kernel> {
    product([m, n, k], "f16", Arithmetic::F16, &|b, x| {
        let halves = filled(k * n).into_iter().map(f16::from_f32).collect();
        let weights = b.constant(Tensor::from_vec(&[k, n], halves)?);
        b.node("MatMul", &[x, weights], vec![])
    })
}

/// As ONNX's dynamic quantisation spells it, from floats to floats.
fn product_int8([m, n, k]: [usize; 3]) -> Result<Kernel> {
    product([m, n, k], "int8", Arithmetic::Int8, &|b, x| {
        let [bytes, scale, zero] = b.nodes("", "DynamicQuantizeLinear", &[x], vec![]);
        let weights = (0..k * n).map(|at| (at * 37 % 127) as i8).collect();
        let weights = b.constant(Tensor::from_vec(&[k, n], weights)?);
        let weights_zero = b.constant(Tensor::scalar(0i8));
        let sums = b.node("MatMulInteger", &[bytes, weights, zero, weights_zero], vec![])?;
        let float = Attribute::Int(i64::from(DType::F32.onnx()));
        let sums = b.node("Cast", &[sums], vec![("to", float)])?;
        let weights_scale = b.constant(Tensor::scalar(0.01f32));
        let scales = b.node("Mul", &[scale, weights_scale], vec![])?;
        b.node("Mul", &[sums, scales], vec![])
    })
}

/// `MatMulNBits` with a scale for each 32 weights.
fn product_int4([m, n, k]: [usize; 3]) -> Result<Kernel> {
    const BLOCK: usize = 32;
    product([m, n, k], "int4", Arithmetic::F32, &|b, x| {
        let blocks = k.div_ceil(BLOCK);
        let bytes = (0..n * blocks * BLOCK / 2).map(|at| (at * 37) as u8).collect();
        let weights = b.constant(Tensor::from_vec(&[n, blocks, BLOCK / 2], bytes)?);
        let scales = b.floats(&[n * blocks])?;
        let int = |name, value: usize| (name, Attribute::Int(value as i64));
        let attributes = vec![int("K", k), int("N", n), int("bits", 4), int("block_size", BLOCK)];
        let [output] = b.nodes("com.microsoft", "MatMulNBits", &[x, weights, scales], attributes);
        Ok(output)
    })
}

fn conv(
    name: &'static str,
    channels: usize,
    size: usize,
    window: usize,
    groups: usize,
) -> Result<Kernel> {
    let shape = vec![1, channels, size, size];
    let mut builder = Builder::default();
    let input = Tensor::from_vec(&shape, filled(shape.iter().product()))?;
    let x = builder.input(&input);
    let weights = builder.floats(&[channels, channels / groups, window, window])?;
    let pads = Attribute::Ints(vec![window as i64 / 2; 4]);
    let group = Attribute::Int(groups as i64);
    let y = builder.node("Conv", &[x, weights], vec![("pads", pads), ("group", group)])?;
    let (dtype, arithmetic) = ("f32", Arithmetic::F32);
    Ok(Kernel { name, shape, dtype, arithmetic, def: builder.finish(y), inputs: vec![input] })
}

/// Twelve heads of 64 over `length` rows, spelled out as exporters do.
fn attention(length: usize) -> Result<Kernel> {
    let shape = vec![1, length, 12, 64];
    let mut builder = Builder::default();
    let input = Tensor::from_vec(&shape, filled(shape.iter().product()))?;
    let x = builder.input(&input);
    let perm = |order: [i64; 4]| vec![("perm", Attribute::Ints(order.to_vec()))];
    let query = builder.node("Transpose", &[x], perm([0, 2, 1, 3]))?;
    let key = builder.node("Transpose", &[x], perm([0, 2, 3, 1]))?;
    let value = builder.node("Transpose", &[x], perm([0, 2, 1, 3]))?;
    let scores = builder.node("MatMul", &[query, key], vec![])?;
    let divisor = builder.constant(Tensor::scalar(8.0f32));
    let scores = builder.node("Div", &[scores, divisor], vec![])?;
    let weights = builder.node("Softmax", &[scores], vec![])?;
    let heads = builder.node("MatMul", &[weights, value], vec![])?;
    let y = builder.node("Transpose", &[heads], perm([0, 2, 1, 3]))?;
    let (name, dtype, arithmetic) = ("attention", "f32", Arithmetic::F32);
    Ok(Kernel { name, shape, dtype, arithmetic, def: builder.finish(y), inputs: vec![input] })
}

/// A kernel over one matrix of floats.
fn rows(
    name: &'static str,
    shape: [usize; 2],
    build: &dyn Fn(&mut Builder, ValueId) -> Result<ValueId>,
) -> Result<Kernel> {
    let mut builder = Builder::default();
    let input = Tensor::from_vec(&shape, filled(shape.iter().product()))?;
    let x = builder.input(&input);
    let y = build(&mut builder, x)?;
    let (shape, dtype, arithmetic) = (shape.to_vec(), "f32", Arithmetic::F32);
    Ok(Kernel { name, shape, dtype, arithmetic, def: builder.finish(y), inputs: vec![input] })
}

/// As many rows as a table has, in another order.
fn gather(wide: usize) -> Result<Kernel> {
    let mut builder = Builder::default();
    let indices = (0..wide).map(|at| (at * 37 % wide) as i64).collect();
    let input = Tensor::from_vec(&[wide], indices)?;
    let x = builder.input(&input);
    let table = builder.floats(&[wide, wide])?;
    let y = builder.node("Gather", &[table, x], vec![])?;
    let (name, shape, dtype, arithmetic) = ("gather", vec![wide, wide], "f32", Arithmetic::F32);
    Ok(Kernel { name, shape, dtype, arithmetic, def: builder.finish(y), inputs: vec![input] })
}

/// Small values that differ.
fn filled(count: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 37 % 101) as f32 - 50.0) / 500.0).collect()
}

type Attributes = Vec<(&'static str, Attribute)>;

/// A graph put together by hand.
#[derive(Default)]
struct Builder(GraphDef);

impl Builder {
    fn value(&mut self, source: ValueSource) -> ValueId {
        let name = self.0.values.len().to_string();
        self.0.values.push(ValueDef { name, source });
        ValueId(self.0.values.len() as u32 - 1)
    }

    fn input(&mut self, like: &Tensor) -> ValueId {
        let value = self.value(ValueSource::Input);
        let shape: Vec<i64> = like.shape().iter().map(|&dim| dim as i64).collect();
        self.0.body.inputs.push(value);
        self.0.inputs.push(TensorSpec::new("x", like.dtype(), &shape));
        value
    }

    fn constant(&mut self, tensor: Tensor) -> ValueId {
        self.value(ValueSource::Constant(tensor))
    }

    fn floats(&mut self, shape: &[usize]) -> Result<ValueId> {
        let tensor = Tensor::from_vec(shape, filled(shape.iter().product()))?;
        Ok(self.constant(tensor))
    }

    fn node(&mut self, op: &str, inputs: &[ValueId], attributes: Attributes) -> Result<ValueId> {
        let [output] = self.nodes("", op, inputs, attributes);
        Ok(output)
    }

    fn nodes<const OUTPUTS: usize>(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[ValueId],
        attributes: Attributes,
    ) -> [ValueId; OUTPUTS] {
        let outputs = [(); OUTPUTS].map(|()| self.value(ValueSource::Node));
        self.0.body.nodes.push(NodeDef {
            domain: domain.into(),
            op: op.into(),
            opset: if domain.is_empty() { 21 } else { 1 },
            name: op.to_owned(),
            inputs: inputs.iter().copied().map(Some).collect(),
            attributes: attributes.into_iter().map(|(name, a)| (Arc::from(name), a)).collect(),
            outputs: outputs.iter().copied().map(Some).collect(),
        });
        outputs
    }

    fn finish(mut self, output: ValueId) -> GraphDef {
        self.0.body.outputs.push(output);
        self.0.output_names.push("y".to_owned());
        self.0
    }
}
