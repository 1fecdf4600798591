//! Whether requests may be merged: a proof that no operator mixes rows.

use crate::FUSED_DOMAIN;
use crate::infer::{Fact, NodeView, resolve_axis, slice_axes};
use crate::plan::Draft;
use crate::validate::subgraphs;
use mortise_types::{Attribute, GraphBody, NodeDef, VARIABLE, Value, ValueId};

/// Conservative: `true` only when dimension 0 of every input and output is the
/// batch and every operator between them is known to keep rows apart.
pub(crate) fn rows_independent(draft: &Draft) -> bool {
    let mut proof = Proof {
        constants: &draft.constants,
        facts: &draft.facts,
        orders: vec![Order::Mixed; draft.facts.len()],
    };
    proof.holds(&draft.body)
}

struct Proof<'a> {
    constants: &'a [Option<Value>],
    facts: &'a [Fact],
    /// By value.
    orders: Vec<Order>,
}

/// How a value depends on the rows of the inputs.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// Not known to keep them apart.
    Mixed,
    /// Row `i` depends on row `i` of the inputs only.
    Rows,
    /// One element for each row, in the order of the rows, in whichever
    /// dimension: what looking labels up gives is `[1, rows]`.
    OneEach,
}

impl Proof<'_> {
    fn holds(&mut self, body: &GraphBody) -> bool {
        for value in &body.inputs {
            if self.shape(*value).and_then(|shape| shape.first()) != Some(&VARIABLE) {
                return false;
            }
            self.orders[value.index()] = Order::Rows;
        }
        for node in &body.nodes {
            if subgraphs(node).next().is_some() {
                return false;
            }
            let order = Step { proof: self, node }.order();
            for output in node.outputs.iter().flatten() {
                self.orders[output.index()] = order;
            }
        }
        body.outputs.iter().all(|value| self.orders[value.index()] == Order::Rows)
    }

    fn shape(&self, value: ValueId) -> Option<&Vec<i64>> {
        self.facts.get(value.index())?.shape.as_ref()
    }
}

/// One node under scrutiny. Methods answer `None` where too little is known.
struct Step<'a> {
    proof: &'a Proof<'a>,
    node: &'a NodeDef,
}

impl Step<'_> {
    fn order(&self) -> Order {
        match self.one_each() {
            Some(order) => order,
            None if self.keeps_rows_apart() == Some(true) => Order::Rows,
            None => Order::Mixed,
        }
    }

    /// Where there is one element for each row, or comes to be: the labels of
    /// classifiers are looked up by the position of the largest score.
    fn one_each(&self) -> Option<Order> {
        let first = self.input(0)?;
        let op = &*self.node.op;
        if op == "ArrayFeatureExtractor" && self.constant(first) {
            let table = self.proof.shape(first)?;
            let is_vector = table.iter().rev().skip(1).all(|dim| *dim == 1);
            let holds = is_vector && self.has_one_each(self.input(1)?);
            return Some(if holds { Order::OneEach } else { Order::Mixed });
        }
        if self.proof.orders.get(first.index()) != Some(&Order::OneEach) {
            return None;
        }
        Some(match op {
            "Cast" | "Identity" | "LabelEncoder" => Order::OneEach,
            "Reshape" | "Squeeze" | "Unsqueeze" | "Transpose" | "Flatten" => {
                match self.proof.shape(*self.node.outputs.first()?.as_ref()?)?.split_first()? {
                    (&VARIABLE, rest) if rest.iter().all(|dim| *dim == 1) => Order::Rows,
                    _ => Order::OneEach,
                }
            }
            _ => Order::Mixed,
        })
    }

    fn has_one_each(&self, value: ValueId) -> bool {
        let is_narrow =
            || self.proof.shape(value).is_some_and(|shape| shape.iter().skip(1).all(|d| *d == 1));
        match self.proof.orders.get(value.index()) {
            Some(Order::OneEach) => true,
            Some(Order::Rows) => is_narrow(),
            _ => false,
        }
    }

    fn keeps_rows_apart(&self) -> Option<bool> {
        if &*self.node.domain == "ai.onnx.ml" {
            return self.ml();
        }
        match &*self.node.domain {
            "" | "ai.onnx" | "com.microsoft" | FUSED_DOMAIN => self.standard(),
            _ => None,
        }
    }

    fn ml(&self) -> Option<bool> {
        let by_row = match &*self.node.op {
            "LinearClassifier"
            | "LinearRegressor"
            | "SVMClassifier"
            | "SVMRegressor"
            | "TreeEnsembleClassifier"
            | "TreeEnsembleRegressor"
            | "TreeEnsemble"
            | "Scaler"
            | "Normalizer"
            | "ArrayFeatureExtractor"
            | "FeatureVectorizer" => {
                // A vector is one row for these operators.
                self.all_inputs(|value| self.constant(value) || self.rank(value) >= Some(2))
            }
            "Imputer" | "Binarizer" | "LabelEncoder" | "CategoryMapper" | "OneHotEncoder" => true,
            _ => false,
        };
        Some(by_row && self.all_inputs(|value| self.constant(value) || self.row(value)))
    }

    fn standard(&self) -> Option<bool> {
        let first = self.input(0)?;
        let rank = self.rank(first);
        Some(match &*self.node.op {
            "Abs" | "Acos" | "Acosh" | "Asin" | "Asinh" | "Atan" | "Atanh" | "BitwiseNot"
            | "Cast" | "Ceil" | "Celu" | "Cos" | "Cosh" | "Elu" | "Erf" | "Exp" | "Floor"
            | "Gelu" | "HardSigmoid" | "HardSwish" | "Identity" | "IsInf" | "IsNaN"
            | "LeakyRelu" | "Log" | "Mish" | "Neg" | "Not" | "QuickGelu" | "Reciprocal"
            | "Relu" | "Round" | "Selu" | "Shrink" | "Sigmoid" | "Sign" | "Sin" | "Sinh"
            | "Softplus" | "Softsign" | "Sqrt" | "Swish" | "Tan" | "Tanh" | "ThresholdedRelu"
            | "Clip" | "Dropout" => self.row(first) && self.rest_constant(1),
            "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Pow" | "Max" | "Min" | "Sum" | "Mean"
            | "Where" | "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "And"
            | "Or" | "Xor" | "PRelu" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" | "FastGelu"
            | "BiasGelu" => self.broadcasts()?,
            "MatMul" | "MatMulBias" | "FusedMatMul" => self.product(first)?,
            // Activations are quantised row by row, or not at all.
            "MatMulInt8" | "MatMulHalf" | "MatMulNBits" => {
                self.row(first) && self.rest_constant(1) && rank? >= 2
            }
            "GatherRows" => {
                let indices = self.input(1)?;
                self.constant(first) && self.row(indices)
            }
            "Gemm" | "FusedGemm" => {
                let plain = self.int("transA", 0) == 0 && self.row(first);
                plain && self.rest_constant(1) && self.input(2).is_none_or(|c| self.flat(c, 2))
            }
            "Softmax" | "LogSoftmax" | "Hardmax" => {
                let default = if self.node.opset < 13 { 1 } else { -1 };
                self.row(first) && resolve_axis(self.int("axis", default), rank?)? > 0
            }
            op if op.starts_with("Reduce") => self.reduction(first)?,
            "ArgMax" | "ArgMin" => self.row(first) && resolve_axis(self.int("axis", 0), rank?)? > 0,
            "TopK" => {
                self.row(first)
                    && self.rest_constant(1)
                    && resolve_axis(self.int("axis", -1), rank?)? > 0
            }
            "Conv"
            | "FusedConv"
            | "ConvInteger"
            | "QLinearConv"
            | "ConvTranspose"
            | "BatchNormalization"
            | "InstanceNormalization"
            | "GroupNormalization" => self.row(first) && rank? >= 2 && self.rest_constant(1),
            "MaxPool" | "AveragePool" | "LpPool" | "GlobalAveragePool" | "GlobalMaxPool"
            | "GlobalLpPool" | "LRN" => self.row(first) && self.node.outputs.get(1).is_none(),
            "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" => {
                self.row(first)
                    && self.rest_constant(1)
                    && resolve_axis(self.int("axis", -1), rank?)? > 0
            }
            "Flatten" => self.row(first) && self.int("axis", 1) == 1,
            "Reshape" => self.row(first) && self.reshape(first)?,
            "Transpose" => {
                self.row(first) && self.view(|view| view.ints("perm")?.first().copied())? == 0
            }
            "Concat" => {
                self.all_inputs(|value| self.row(value))
                    && resolve_axis(self.int("axis", 1), rank?)? > 0
            }
            "Split" => {
                self.row(first)
                    && self.rest_constant(1)
                    && resolve_axis(self.int("axis", 0), rank?)? > 0
            }
            "Slice" => {
                let axes = self.view(|view| slice_axes(view, rank?))?;
                self.row(first) && self.rest_constant(1) && !axes.contains(&0)
            }
            "Squeeze" | "Unsqueeze" => {
                let axes = self.view(|view| view.ints_or_input("axes", 1))?;
                let added = if &*self.node.op == "Unsqueeze" { axes.len() } else { 0 };
                let resolve = |axis: &i64| resolve_axis(*axis, rank? + added);
                let axes: Vec<usize> = axes.iter().map(resolve).collect::<Option<_>>()?;
                self.row(first) && !axes.contains(&0)
            }
            "Gather" => {
                let (indices, axis) = (self.input(1)?, resolve_axis(self.int("axis", 0), rank?)?);
                let columns = self.row(first) && self.constant(indices) && axis > 0;
                let lookup = self.constant(first) && self.row(indices) && axis == 0;
                columns || lookup
            }
            "OneHot" => {
                self.row(first)
                    && self.rest_constant(1)
                    && resolve_axis(self.int("axis", -1), rank? + 1)? > 0
            }
            _ => false,
        })
    }

    /// Rows stay apart under broadcasting when every operand either has the
    /// batch in the same place or has nothing there.
    fn broadcasts(&self) -> Option<bool> {
        let operands: Vec<ValueId> = self.node.inputs.iter().flatten().copied().collect();
        let ranks = operands.iter().map(|value| self.rank(*value)).collect::<Option<Vec<_>>>()?;
        let rank = ranks.into_iter().max()?;
        let fits = |value: &ValueId| {
            (self.row(*value) && self.rank(*value) == Some(rank)) || self.flat(*value, rank)
        };
        Some(operands.iter().all(fits) && operands.iter().any(|value| self.row(*value)))
    }

    /// A constant with nothing, or size 1, where the batch of a `rank`-sized
    /// result is.
    fn flat(&self, value: ValueId, rank: usize) -> bool {
        let shape = self.proof.shape(value);
        let fits =
            shape.is_some_and(|s| s.len() < rank || (s.len() == rank && s.first() == Some(&1)));
        self.constant(value) && fits
    }

    fn product(&self, first: ValueId) -> Option<bool> {
        let (second, rank) = (self.input(1)?, self.rank(first)?);
        if self.int("transA", 0) != 0 && rank < 3 {
            return Some(false);
        }
        let bias = self.input(2).is_none_or(|bias| self.constant(bias));
        if self.constant(second) {
            let narrow = self.rank(second)? <= 2 || self.rank(second)? < rank;
            return Some(bias && self.row(first) && rank >= 2 && narrow);
        }
        let both = self.row(first) && self.row(second) && self.rank(second)? == rank;
        Some(bias && both && rank >= 3)
    }

    fn reduction(&self, first: ValueId) -> Option<bool> {
        let axes = self.view(|view| view.ints_or_input("axes", 1))?;
        let rank = self.rank(first)?;
        let axes: Vec<usize> =
            axes.iter().map(|axis| resolve_axis(*axis, rank)).collect::<Option<_>>()?;
        Some(self.row(first) && !axes.is_empty() && !axes.contains(&0))
    }

    /// The target copies the batch, or computes it from rows of a known size.
    fn reshape(&self, first: ValueId) -> Option<bool> {
        let target = self.view(|view| view.ints_or_input("shape", 1))?;
        let (lead, rest) = target.split_first()?;
        if *lead == 0 && self.int("allowzero", 0) == 0 {
            return Some(true);
        }
        let source = self.proof.shape(first)?.get(1..)?;
        let size = |dims: &[i64]| {
            dims.iter().try_fold(1i64, |size, dim| size.checked_mul((*dim > 0).then_some(*dim)?))
        };
        Some(*lead == -1 && size(source)? == size(rest)?)
    }

    fn view<T>(&self, read: impl FnOnce(&NodeView<'_>) -> Option<T>) -> Option<T> {
        let (constants, facts) = (self.proof.constants, self.proof.facts);
        read(&NodeView { node: self.node, constants, facts })
    }

    fn input(&self, index: usize) -> Option<ValueId> {
        self.node.inputs.get(index).copied().flatten()
    }

    fn row(&self, value: ValueId) -> bool {
        self.proof.orders.get(value.index()) == Some(&Order::Rows)
    }

    fn constant(&self, value: ValueId) -> bool {
        self.proof.constants.get(value.index()).is_some_and(Option::is_some)
    }

    fn rank(&self, value: ValueId) -> Option<usize> {
        self.proof.shape(value).map(Vec::len)
    }

    fn all_inputs(&self, holds: impl Fn(ValueId) -> bool) -> bool {
        self.node.inputs.iter().flatten().all(|value| holds(*value))
    }

    fn rest_constant(&self, from: usize) -> bool {
        self.node.inputs.iter().skip(from).flatten().all(|value| self.constant(*value))
    }

    fn int(&self, name: &str, default: i64) -> i64 {
        match self.node.attribute(name) {
            Some(Attribute::Int(value)) => *value,
            _ => default,
        }
    }
}
