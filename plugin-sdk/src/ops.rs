//! Typed functions for the common operators. All of them return an error when
//! a limit on the graph is hit; shapes and dtypes are checked by
//! [`GraphBuilder::finish`].

use crate::{DType, GraphBuilder, Result, Value};

/// Options of [`GraphBuilder::gemm`]; the default is `x · w`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gemm {
    /// Reads the left matrix as its transpose.
    pub transpose_left: bool,
    /// Reads the right matrix as its transpose: weights stored `[out, in]`.
    pub transpose_right: bool,
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident => $op:literal),* $(,)?) => {
        impl GraphBuilder {
            $($(#[$doc])*
            ///
            /// # Errors
            /// When a limit on the graph is hit.
            pub fn $name(&self, x: Value) -> Result<Value> {
                self.node($op).input(x).output()
            })*
        }
    };
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident => $op:literal),* $(,)?) => {
        impl GraphBuilder {
            $($(#[$doc])*
            /// Shapes are broadcast as NumPy does.
            ///
            /// # Errors
            /// When a limit on the graph is hit.
            pub fn $name(&self, a: Value, b: Value) -> Result<Value> {
                self.node($op).input(a).input(b).output()
            })*
        }
    };
}

unary! {
    /// The same values under another name.
    identity => "Identity",
    /// `-x`
    neg => "Neg",
    /// `|x|`
    abs => "Abs",
    /// `e` to the power of each element.
    exp => "Exp",
    /// The natural logarithm.
    log => "Log",
    /// The square root.
    sqrt => "Sqrt",
    /// The Gauss error function.
    erf => "Erf",
    /// The hyperbolic tangent.
    tanh => "Tanh",
    /// `1 / (1 + e^-x)`
    sigmoid => "Sigmoid",
    /// `max(x, 0)`
    relu => "Relu",
    /// Logical negation of `BOOL`.
    not => "Not",
    /// `BOOL`: whether each element is NaN.
    is_nan => "IsNaN",
    /// The shape as a one-dimensional `INT64` tensor.
    shape_of => "Shape",
}

binary! {
    /// The matrix product of the last two dimensions; the others are batches.
    matmul => "MatMul",
    /// `a + b`
    add => "Add",
    /// `a - b`
    sub => "Sub",
    /// `a * b`
    mul => "Mul",
    /// `a / b`
    div => "Div",
    /// `a` to the power of `b`.
    pow => "Pow",
    /// `BOOL`: `a == b`.
    equal => "Equal",
    /// `BOOL`: `a < b`.
    less => "Less",
    /// `BOOL`: `a <= b`.
    less_or_equal => "LessOrEqual",
    /// `BOOL`: `a > b`.
    greater => "Greater",
    /// `BOOL`: `a >= b`.
    greater_or_equal => "GreaterOrEqual",
    /// Logical and of `BOOL`.
    and => "And",
    /// Logical or of `BOOL`.
    or => "Or",
}

impl GraphBuilder {
    /// `x · w + bias` for matrices; see [`Gemm`] for transposed ones.
    ///
    /// # Errors
    /// When a limit on the graph is hit.
    pub fn gemm(&self, x: Value, w: Value, bias: Option<Value>, options: Gemm) -> Result<Value> {
        self.node("Gemm")
            .input(x)
            .input(w)
            .optional(bias)
            .attribute("transA", i64::from(options.transpose_left))
            .attribute("transB", i64::from(options.transpose_right))
            .output()
    }

    /// Gaussian error linear unit, exact.
    ///
    /// # Errors
    /// When a limit on the graph is hit.
    pub fn gelu(&self, x: Value) -> Result<Value> {
        self.node("Gelu").input(x).output()
    }

    /// Probabilities along `axis`.
    ///
    /// # Errors
    /// When a limit on the graph is hit.
    pub fn softmax(&self, x: Value, axis: i64) -> Result<Value> {
        self.node("Softmax").input(x).attribute("axis", axis).output()
    }

    /// Elements limited to `[min, max]`, which are scalars of the same dtype.
    ///
    /// # Errors
    /// When a limit on the graph is hit.
    pub fn clip(&self, x: Value, min: Option<Value>, max: Option<Value>) -> Result<Value> {
        self.node("Clip").input(x).optional(min).optional(max).output()
    }

    /// `a` where `condition` holds, `b` elsewhere; shapes are broadcast.
    ///
    /// # Errors
    /// When a limit on the graph is hit.
    pub fn where_(&self, condition: Value, a: Value, b: Value) -> Result<Value> {
        self.node("Where").inputs([condition, a, b]).output()
    }

    /// Elements converted to another dtype.
    ///
    /// # Errors
    /// When a limit on the graph is hit.
    pub fn cast(&self, x: Value, to: DType) -> Result<Value> {
        self.node("Cast").input(x).attribute("to", i64::from(to.onnx())).output()
    }

    /// The same elements under another shape; one size may be -1, and 0 keeps
    /// the size that `x` has there.
    ///
    /// # Errors
    /// When a limit on the graph is hit.
    pub fn reshape(&self, x: Value, shape: &[i64]) -> Result<Value> {
        let shape = self.vector(shape)?;
        self.node("Reshape").inputs([x, shape]).output()
    }

    /// Dimensions in another order.
    ///
    /// # Errors
    /// When a limit on the graph is hit.
    pub fn transpose(&self, x: Value, order: &[i64]) -> Result<Value> {
        self.node("Transpose").input(x).attribute("perm", order).output()
    }

    /// Values one after the other along `axis`.
    ///
    /// # Errors
    /// When a limit on the graph is hit.
    pub fn concat(&self, values: &[Value], axis: i64) -> Result<Value> {
        self.node("Concat").inputs(values.iter().copied()).attribute("axis", axis).output()
    }

    /// The slices of `x` along `axis` that `indices` names.
    ///
    /// # Errors
    /// When a limit on the graph is hit.
    pub fn gather(&self, x: Value, indices: Value, axis: i64) -> Result<Value> {
        self.node("Gather").inputs([x, indices]).attribute("axis", axis).output()
    }

    /// New dimensions of size 1 at `axes`.
    ///
    /// # Errors
    /// When a limit on the graph is hit.
    pub fn unsqueeze(&self, x: Value, axes: &[i64]) -> Result<Value> {
        let axes = self.vector(axes)?;
        self.node("Unsqueeze").inputs([x, axes]).output()
    }

    /// Without the dimensions of size 1 at `axes`.
    ///
    /// # Errors
    /// When a limit on the graph is hit.
    pub fn squeeze(&self, x: Value, axes: &[i64]) -> Result<Value> {
        let axes = self.vector(axes)?;
        self.node("Squeeze").inputs([x, axes]).output()
    }

    /// The mean along `axes`, which stay as size 1 when `keep_dims`.
    ///
    /// # Errors
    /// When a limit on the graph is hit.
    pub fn reduce_mean(&self, x: Value, axes: &[i64], keep_dims: bool) -> Result<Value> {
        self.reduce("ReduceMean", x, axes, keep_dims)
    }

    /// The sum along `axes`, which stay as size 1 when `keep_dims`.
    ///
    /// # Errors
    /// When a limit on the graph is hit.
    pub fn reduce_sum(&self, x: Value, axes: &[i64], keep_dims: bool) -> Result<Value> {
        self.reduce("ReduceSum", x, axes, keep_dims)
    }

    fn reduce(&self, op: &str, x: Value, axes: &[i64], keep_dims: bool) -> Result<Value> {
        let axes = self.vector(axes)?;
        self.node(op).inputs([x, axes]).attribute("keepdims", i64::from(keep_dims)).output()
    }

    /// Indices of the largest elements along `axis`, as `INT64`.
    ///
    /// # Errors
    /// When a limit on the graph is hit.
    pub fn arg_max(&self, x: Value, axis: i64, keep_dims: bool) -> Result<Value> {
        self.node("ArgMax")
            .input(x)
            .attribute("axis", axis)
            .attribute("keepdims", i64::from(keep_dims))
            .output()
    }

    /// Layer normalisation over the last dimension.
    ///
    /// # Errors
    /// When a limit on the graph is hit.
    pub fn layer_norm(&self, x: Value, scale: Value, bias: Value, epsilon: f32) -> Result<Value> {
        self.node("LayerNormalization")
            .inputs([x, scale, bias])
            .attribute("axis", -1i64)
            .attribute("epsilon", epsilon)
            .output()
    }
}
