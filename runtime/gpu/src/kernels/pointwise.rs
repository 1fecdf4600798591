//! Chains of operators that work element by element, generated as one kernel.

use super::{constant_float, float, input, int, only_output, text};
use crate::lower::{Builder, THREADS};
use crate::operand::{Operand, broadcast, collapse, is_float};
use crate::params::Params;
use crate::shaders::Kernel;
use mortise_types::{DType, NodeDef, Result, Shape, ValueId};
use std::borrow::Cow;
use std::fmt::Write;

/// Operands of one kernel; with the answer they must fit its bindings, and
/// their strides its parameters.
const MAX_INPUTS: usize = 5;

/// Dimensions of one kernel after joining.
const MAX_RANK: usize = 4;

/// Operators of one kernel: what a shader compiler takes well.
const MAX_LENGTH: usize = 48;

/// Operators over the same elements, not yet launched.
#[derive(Clone)]
pub(crate) struct Chain {
    pub(crate) dtype: DType,
    pub(crate) shape: Shape,
    inputs: Vec<Operand>,
    instructions: Vec<Instruction>,
}

/// One operator: a WGSL expression with `$0`, `$1`, … for its arguments.
#[derive(Clone)]
struct Instruction {
    template: Cow<'static, str>,
    arguments: Vec<Argument>,
}

#[derive(Clone, Copy)]
enum Argument {
    Input(usize),
    Instruction(usize),
}

/// What a node computes from its operands.
struct Operation {
    template: Cow<'static, str>,
    arguments: Vec<ValueId>,
    dtype: DType,
}

/// Appends `node` to the chains of its operands.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn lower(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some(output) = only_output(node) else { return Ok(false) };
    let Some(operation) = operation(builder, node) else { return Ok(false) };
    if !operation.arguments.iter().all(|value| builder.is_held(*value)) {
        return Ok(false);
    }
    let shapes = operation.arguments.iter().map(|value| builder.shape(*value));
    let joint = shapes.flatten().try_fold(Shape::new(), |joint, shape| broadcast(&joint, &shape));
    let Some(shape) = joint.filter(|shape| shape.iter().product::<usize>() < 1 << 29) else {
        return Ok(false);
    };
    for merge in [true, false] {
        let chain = build(builder, &operation, &shape, merge)?;
        if chain.fits() {
            builder.defer(output, chain);
            return Ok(true);
        }
    }
    Ok(false)
}

fn build(
    builder: &mut Builder<'_>,
    operation: &Operation,
    shape: &Shape,
    merge: bool,
) -> Result<Chain> {
    let mut chain = Chain {
        dtype: operation.dtype,
        shape: shape.clone(),
        inputs: Vec::new(),
        instructions: Vec::new(),
    };
    let mut arguments = Vec::new();
    for value in &operation.arguments {
        let deferred = builder.deferred(*value).filter(|other| merge && other.shape == *shape);
        arguments.push(match deferred.cloned() {
            Some(other) => chain.append(&other),
            None => {
                let operand = builder.operand(*value)?;
                Argument::Input(chain.input(operand))
            }
        });
    }
    chain.push(operation.template.clone(), arguments);
    if operation.dtype == DType::F16 {
        let last = chain.instructions.len() - 1;
        chain.push("quantizeToF16($0)".into(), vec![Argument::Instruction(last)]);
    }
    Ok(chain)
}

impl Chain {
    /// One operator over operands that broadcast to `shape`; `None` when they
    /// are too many or too irregular for one kernel.
    pub(crate) fn of(
        template: &'static str,
        dtype: DType,
        shape: &[usize],
        inputs: Vec<Operand>,
    ) -> Option<Self> {
        let mut chain =
            Self { dtype, shape: shape.into(), inputs: Vec::new(), instructions: Vec::new() };
        let arguments = inputs.into_iter().map(|x| Argument::Input(chain.input(x))).collect();
        chain.push(template.into(), arguments);
        chain.fits().then_some(chain)
    }

    /// The operand, rounded to half precision.
    pub(crate) fn rounding(operand: Operand) -> Self {
        let (dtype, shape) = (operand.dtype, operand.shape.clone());
        let mut chain = Self { dtype, shape, inputs: vec![operand], instructions: Vec::new() };
        chain.push("quantizeToF16($0)".into(), vec![Argument::Input(0)]);
        chain
    }

    fn input(&mut self, operand: Operand) -> usize {
        match self.inputs.iter().position(|known| *known == operand) {
            Some(at) => at,
            None => {
                self.inputs.push(operand);
                self.inputs.len() - 1
            }
        }
    }

    fn push(&mut self, template: Cow<'static, str>, arguments: Vec<Argument>) {
        self.instructions.push(Instruction { template, arguments });
    }

    /// The other chain's answer, computed here.
    fn append(&mut self, other: &Self) -> Argument {
        let inputs: Vec<usize> = other.inputs.iter().map(|o| self.input(o.clone())).collect();
        let first = self.instructions.len();
        for instruction in &other.instructions {
            let moved = |argument: &Argument| match argument {
                Argument::Input(at) => Argument::Input(inputs[*at]),
                Argument::Instruction(at) => Argument::Instruction(first + at),
            };
            let arguments = instruction.arguments.iter().map(moved).collect();
            self.push(instruction.template.clone(), arguments);
        }
        Argument::Instruction(self.instructions.len() - 1)
    }

    fn layouts(&self) -> (Shape, Vec<Shape>) {
        let strides = self.inputs.iter().map(|input| input.broadcast_strides(&self.shape));
        let mut layouts: Vec<Shape> = strides.collect();
        layouts.push(crate::operand::dense_strides(&self.shape));
        collapse(&self.shape, &layouts)
    }

    fn fits(&self) -> bool {
        self.inputs.len() <= MAX_INPUTS
            && self.instructions.len() <= MAX_LENGTH
            && self.layouts().0.len() <= MAX_RANK
    }

    /// Emits the kernel and answers where its result is.
    ///
    /// # Errors
    /// None today; kernels that allocate have them.
    pub(crate) fn launch(self, builder: &mut Builder<'_>) -> Result<Operand> {
        let output = builder.allocate(self.dtype, &self.shape);
        let (dims, layouts) = self.layouts();
        let kernel = Kernel::generated(&self.source(&layouts), self.inputs.len() + 1);
        let padded = |values: &Shape, fill: usize| {
            let mut all = vec![fill; MAX_RANK - values.len()];
            all.extend(values);
            all
        };
        let mut params = Params::new().size(output.len()).sizes(&padded(&dims, 1));
        for layout in &layouts[..self.inputs.len()] {
            params = params.sizes(&padded(layout, 0));
        }
        let mut bindings: Vec<_> = self.inputs.iter().map(|input| input.place.clone()).collect();
        bindings.push(output.place.clone());
        let groups = [output.len().div_ceil(THREADS), 1, 1];
        builder.launch(kernel, bindings, params, groups);
        Ok(output)
    }

    /// WGSL of the whole chain. Sizes are parameters, so that a kernel serves
    /// every shape with the same pattern of broadcasting.
    fn source(&self, layouts: &[Shape]) -> String {
        let mut text = String::from("// include: common.wgsl\n");
        let kind = |dtype| if is_float(dtype) { "f32" } else { "i32" };
        text.push_str("struct Params { count: u32, dims: array<u32, 4>,");
        for at in 0..self.inputs.len() {
            let _ = write!(text, " s{at}: array<u32, 4>,");
        }
        text.push_str(" }\nvar<immediate> p: Params;\n");
        let dtypes = self.inputs.iter().map(|input| input.dtype).chain([self.dtype]);
        for (at, dtype) in dtypes.enumerate() {
            let kind = kind(dtype);
            let _ = writeln!(
                text,
                "@group(0) @binding({at}) var<storage, read_write> x{at}: array<{kind}>;"
            );
        }
        text.push_str(EXTRA);
        text.push_str(HEAD);
        let dense = layouts.last().cloned().unwrap_or_default();
        for (at, layout) in layouts.iter().enumerate().take(self.inputs.len()) {
            let _ = writeln!(text, "let v{at} = x{at}[{}];", index(at, layout, &dense));
        }
        for (at, instruction) in self.instructions.iter().enumerate() {
            let _ = writeln!(text, "let t{at} = {};", instruction.text());
        }
        let last = self.instructions.len() - 1;
        let _ = write!(text, "x{}[at] = t{last};\n}}\n}}\n", self.inputs.len());
        text
    }
}

const HEAD: &str = "@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>) {
for (var at = id.x; at < p.count; at += n.x * 256u) {
let c3 = at % p.dims[3];
let r2 = at / p.dims[3];
let c2 = r2 % p.dims[2];
let r1 = r2 / p.dims[2];
let c1 = r1 % p.dims[1];
let c0 = r1 / p.dims[1];
";

/// Functions that only chains use.
const EXTRA: &str = "
fn maximum(a: f32, b: f32) -> f32 {
    if is_nan(a) { return a; }
    if is_nan(b) { return b; }
    return max(a, b);
}
fn minimum(a: f32, b: f32) -> f32 {
    if is_nan(a) { return a; }
    if is_nan(b) { return b; }
    return min(a, b);
}
fn power(a: f32, b: f32) -> f32 {
    if b == 0.0 { return 1.0; }
    if b == 1.0 { return a; }
    if b == 2.0 { return a * a; }
    if b == 3.0 { return a * a * a; }
    if b == 0.5 { return sqrt(a); }
    let size = pow(abs(a), b);
    if a >= 0.0 { return size; }
    let odd = (b - 2.0 * floor(b * 0.5)) == 1.0;
    if floor(b) != b { return (a - a) / (a - a); }
    return select(size, -size, odd);
}
fn softplus(x: f32) -> f32 {
    return max(x, 0.0) + log(1.0 + exp(-abs(x)));
}
fn gelu_tanh(x: f32) -> f32 {
    return 0.5 * x * (1.0 + tanh_of(0.7978845608 * (x + 0.044715 * x * x * x)));
}
";

/// Where input `at` has the element.
fn index(at: usize, layout: &Shape, dense: &Shape) -> String {
    if layout == dense {
        return "at".to_owned();
    }
    if layout.iter().all(|stride| *stride == 0) {
        return "0u".to_owned();
    }
    let first = MAX_RANK - layout.len();
    let terms = layout.iter().enumerate().filter(|(_, stride)| **stride != 0);
    let term = |(axis, _)| format!("c{} * p.s{at}[{}]", axis + first, axis + first);
    terms.map(term).collect::<Vec<_>>().join(" + ")
}

impl Instruction {
    fn text(&self) -> String {
        let mut text = self.template.to_string();
        for (at, argument) in self.arguments.iter().enumerate() {
            let name = match argument {
                Argument::Input(at) => format!("v{at}"),
                Argument::Instruction(at) => format!("t{at}"),
            };
            text = text.replace(&format!("${at}"), &name);
        }
        text
    }
}

/// Functions of one float, as WGSL.
const UNARY: &[(&str, &str)] = &[
    ("Abs", "abs($0)"),
    ("Ceil", "ceil($0)"),
    ("Cos", "cos($0)"),
    ("Erf", "erf($0)"),
    ("Exp", "exp($0)"),
    ("Floor", "floor($0)"),
    ("HardSwish", "$0 * clamp($0 / 6.0 + 0.5, 0.0, 1.0)"),
    ("Log", "log($0)"),
    ("Mish", "$0 * tanh_of(softplus($0))"),
    ("Neg", "-$0"),
    ("Reciprocal", "1.0 / $0"),
    ("Relu", "relu($0)"),
    ("Round", "round($0)"),
    ("Sigmoid", "sigmoid($0)"),
    ("Sign", "sign($0)"),
    ("Sin", "sin($0)"),
    ("Softplus", "softplus($0)"),
    ("Softsign", "$0 / (1.0 + abs($0))"),
    ("Sqrt", "sqrt($0)"),
    ("Tanh", "tanh_of($0)"),
];

/// Functions of two floats.
const BINARY: &[(&str, &str)] =
    &[("Add", "$0 + $1"), ("Div", "$0 / $1"), ("Mul", "$0 * $1"), ("Sub", "$0 - $1")];

/// Functions of two `INT32`.
const INTEGER: &[(&str, &str)] = &[("Add", "$0 + $1"), ("Mul", "$0 * $1"), ("Sub", "$0 - $1")];

/// Comparisons, of floats or of integers.
const COMPARE: &[(&str, &str)] = &[
    ("Equal", "select(0i, 1i, $0 == $1)"),
    ("Greater", "select(0i, 1i, $0 > $1)"),
    ("GreaterOrEqual", "select(0i, 1i, $0 >= $1)"),
    ("Less", "select(0i, 1i, $0 < $1)"),
    ("LessOrEqual", "select(0i, 1i, $0 <= $1)"),
];

const LOGICAL: &[(&str, &str)] = &[("And", "$0 & $1"), ("Or", "$0 | $1"), ("Xor", "$0 ^ $1")];

const OTHERS: &[&str] = &[
    "BiasGelu",
    "Cast",
    "Clip",
    "Elu",
    "FastGelu",
    "Gelu",
    "HardSigmoid",
    "IsNaN",
    "LeakyRelu",
    "Max",
    "Min",
    "Not",
    "PRelu",
    "Pow",
    "QuickGelu",
    "Sum",
    "ThresholdedRelu",
    "Where",
];

fn entry(table: &'static [(&str, &str)], op: &str) -> Option<&'static str> {
    table.iter().find(|(name, _)| *name == op).map(|(_, template)| *template)
}

pub(crate) fn knows(op: &str) -> bool {
    [UNARY, BINARY, COMPARE, LOGICAL].iter().any(|table| entry(table, op).is_some())
        || OTHERS.contains(&op)
}

/// What `node` computes, when the device can.
fn operation(builder: &Builder<'_>, node: &NodeDef) -> Option<Operation> {
    let op = &*node.op;
    let x = input(node, 0)?;
    let dtype = builder.dtype(x)?;
    let operation = |template: Cow<'static, str>, arguments: Vec<ValueId>, dtype| {
        Some(Operation { template, arguments, dtype })
    };
    if is_float(dtype)
        && let Some(template) = entry(UNARY, op).map(Cow::Borrowed).or_else(|| tuned(node))
    {
        return operation(template, vec![x], dtype);
    }
    match op {
        "Cast" => return cast(builder, node, x),
        "Clip" => return clip(builder, node, x),
        "Where" => {
            let (yes, no) = (input(node, 1)?, input(node, 2)?);
            let dtype = builder.dtype(yes).filter(|d| Some(*d) == builder.dtype(no))?;
            let template = "select($2, $1, $0 != 0i)".into();
            return operation(template, vec![x, yes, no], dtype);
        }
        "Not" if dtype == DType::Bool => return operation("1i - $0".into(), vec![x], dtype),
        "IsNaN" if is_float(dtype) => {
            return operation("select(0i, 1i, is_nan($0))".into(), vec![x], DType::Bool);
        }
        "Max" | "Min" | "Sum" if is_float(dtype) => return variadic(builder, node, dtype),
        _ => {}
    }
    let y =
        input(node, 1).filter(|y| node.inputs.len() == 2 && builder.dtype(*y) == Some(dtype))?;
    let (template, result) = binary(op, dtype)?;
    operation(template.into(), vec![x, y], result)
}

fn binary(op: &str, dtype: DType) -> Option<(&'static str, DType)> {
    if let Some(template) = entry(COMPARE, op) {
        return Some((template, DType::Bool));
    }
    if dtype == DType::Bool {
        return entry(LOGICAL, op).map(|template| (template, dtype));
    }
    if dtype == DType::I32 {
        return entry(INTEGER, op).map(|template| (template, dtype));
    }
    if !is_float(dtype) {
        return None;
    }
    let template = match op {
        "Pow" => "power($0, $1)",
        "PRelu" => "select($0, $0 * $1, $0 < 0.0)",
        "BiasGelu" => "gelu($0 + $1)",
        "FastGelu" => "gelu_tanh($0 + $1)",
        op => entry(BINARY, op)?,
    };
    Some((template, dtype))
}

/// Functions of one float with attributes.
fn tuned(node: &NodeDef) -> Option<Cow<'static, str>> {
    let number = |name: &str, default: f32| {
        let value = float(node, name, default)?;
        value.is_finite().then(|| literal(value))
    };
    Some(match &*node.op {
        "Gelu" => match text(node, "approximate", "none")? {
            "none" => "gelu($0)".into(),
            "tanh" => "gelu_tanh($0)".into(),
            _ => return None,
        },
        "FastGelu" if node.inputs.get(1).copied().flatten().is_none() => "gelu_tanh($0)".into(),
        "LeakyRelu" => format!("select($0, $0 * {}, $0 < 0.0)", number("alpha", 0.01)?).into(),
        "Elu" => {
            format!("select($0, {} * (exp($0) - 1.0), $0 < 0.0)", number("alpha", 1.0)?).into()
        }
        "HardSigmoid" => {
            let (alpha, beta) = (number("alpha", 0.2)?, number("beta", 0.5)?);
            format!("minimum(maximum({alpha} * $0 + {beta}, 0.0), 1.0)").into()
        }
        "ThresholdedRelu" => format!("select(0.0, $0, $0 > {})", number("alpha", 1.0)?).into(),
        "QuickGelu" => format!("$0 * sigmoid({} * $0)", number("alpha", 1.702)?).into(),
        _ => return None,
    })
}

fn literal(value: f32) -> String {
    format!("({value:e}f)")
}

fn variadic(builder: &Builder<'_>, node: &NodeDef, dtype: DType) -> Option<Operation> {
    let arguments: Vec<ValueId> = node.inputs.iter().copied().collect::<Option<_>>()?;
    let same = arguments.iter().all(|value| builder.dtype(*value) == Some(dtype));
    if !same || arguments.len() > MAX_INPUTS {
        return None;
    }
    let joined = |joined: String, next: String| match &*node.op {
        "Max" => format!("maximum({joined}, {next})"),
        "Min" => format!("minimum({joined}, {next})"),
        _ => format!("({joined} + {next})"),
    };
    let template = (0..arguments.len()).map(|at| format!("${at}")).reduce(joined)?;
    Some(Operation { template: template.into(), arguments, dtype })
}

fn clip(builder: &Builder<'_>, node: &NodeDef, x: ValueId) -> Option<Operation> {
    let dtype = builder.dtype(x).filter(|dtype| is_float(*dtype))?;
    let bound = |index: usize, name: &str| match input(node, index) {
        Some(value) => constant_float(builder, value).map(Some),
        None => match node.attribute(name) {
            None => Some(None),
            Some(_) => float(node, name, 0.0).map(Some),
        },
    };
    let (low, high) = (bound(1, "min")?, bound(2, "max")?);
    if [low, high].into_iter().flatten().any(|bound| !bound.is_finite()) {
        return None;
    }
    let mut template = "$0".to_owned();
    if let Some(low) = low {
        template = format!("maximum({template}, {})", literal(low));
    }
    if let Some(high) = high {
        template = format!("minimum({template}, {})", literal(high));
    }
    Some(Operation { template: template.into(), arguments: vec![x], dtype })
}

fn cast(builder: &Builder<'_>, node: &NodeDef, x: ValueId) -> Option<Operation> {
    let from = builder.dtype(x)?;
    let to = DType::from_onnx(i32::try_from(int(node, "to", 0)?).ok()?)?;
    let template = match (is_float(from), to) {
        (true, DType::F32 | DType::F16) => "$0",
        (false, DType::F32) => "f32($0)",
        (true, DType::Bool) => "select(0i, 1i, $0 != 0.0)",
        (false, DType::Bool) => "select(0i, 1i, $0 != 0i)",
        // Wider integers hold what fits; what does not fit never got here.
        (false, DType::I32 | DType::I64) => "$0",
        _ => return None,
    };
    Some(Operation { template: template.into(), arguments: vec![x], dtype: to })
}
