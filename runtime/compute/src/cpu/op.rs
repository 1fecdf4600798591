//! What an operator is: a struct made once from its node at compile time, and
//! a `run` that turns input values into output values.

use crate::cpu::arena::Arena;
use mortise_types::{
    Attribute, DType, Error, GraphBody, NodeDef, Result, RunControl, Tensor, Value,
};
use smallvec::SmallVec;
use std::sync::Arc;

/// Output values, in the node's order.
pub(crate) type Outputs = SmallVec<[Value; 2]>;

/// One operator with its attributes parsed. Made at compile time, run for
/// every request, possibly from several threads at once.
pub(crate) trait Operator: Send + Sync {
    /// Computes the outputs. Shapes and dtypes of inputs are the client's:
    /// check before indexing, and never panic.
    ///
    /// # Errors
    /// `InvalidInput` for shapes or dtypes that do not fit, `Unsupported` for
    /// a dtype that is not implemented (say which).
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs>;

    /// Called once at compile time with the inputs that are constants, so that
    /// weights can be packed ahead of time.
    ///
    /// # Errors
    /// As `run`.
    fn prepare(&mut self, _constants: &[Option<Value>]) -> Result<()> {
        Ok(())
    }

    /// Whether `prepare` took all it needs of an input, so that the program
    /// need not keep the constant: `run` then finds the input absent.
    fn holds(&self, _input: usize) -> bool {
        false
    }

    /// Bytes that `prepare` copied into a layout of its own.
    fn packed_bytes(&self) -> usize {
        0
    }
}

/// Makes an operator from a node, checking its attributes.
pub(crate) type Build = fn(&NodeDef) -> Result<Box<dyn Operator>>;

/// One row of the operator table: `op` means `build` from opset `since` until
/// a later row for the same name.
pub(crate) struct Entry {
    pub(crate) op: &'static str,
    pub(crate) since: u32,
    pub(crate) build: Build,
}

/// What the executor lends an operator while it runs.
pub(crate) struct OpContext<'a> {
    pub(crate) control: &'a RunControl,
    pub(crate) arena: &'a Arc<Arena>,
    /// Runs a subgraph attribute; `None` in operators that have none.
    pub(crate) subgraphs: Option<&'a dyn RunSubgraph>,
    /// How many outputs the node has; optional ones beyond it need no work.
    pub(crate) output_count: usize,
}

/// Runs a subgraph of the node in hand; outer values are captured.
pub(crate) trait RunSubgraph {
    /// # Errors
    /// Whatever a node inside returns, or the deadline.
    fn run_body(&self, body: &Arc<GraphBody>, inputs: Vec<Value>) -> Result<Vec<Value>>;
}

impl OpContext<'_> {
    /// Memory for an output from the arena; contents are unspecified (never
    /// another request's: the arena clears or overwrites).
    ///
    /// # Errors
    /// `LimitExceeded` when the arena's limit is hit.
    pub(crate) fn allocate(&self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        Arena::allocate(self.arena, dtype, shape)
    }
}

/// The inputs of one run. Taking a tensor hands over the caller's reference,
/// so that one nobody else holds can be overwritten in place.
pub(crate) struct Inputs<'a> {
    values: &'a mut [Option<Value>],
}

impl<'a> Inputs<'a> {
    pub(crate) fn new(values: &'a mut [Option<Value>]) -> Self {
        Self { values }
    }

    /// Number of inputs, absent ones included.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// # Errors
    /// When the input is absent.
    pub(crate) fn value(&self, index: usize) -> Result<&Value> {
        self.optional_value(index)
            .ok_or_else(|| Error::invalid(format!("input {index} is required")))
    }

    pub(crate) fn optional_value(&self, index: usize) -> Option<&Value> {
        self.values.get(index).and_then(Option::as_ref)
    }

    /// # Errors
    /// When the input is absent or not a tensor.
    pub(crate) fn tensor(&self, index: usize) -> Result<&Tensor> {
        self.value(index)?.tensor()
    }

    /// # Errors
    /// When the input is present and not a tensor.
    pub(crate) fn optional(&self, index: usize) -> Result<Option<&Tensor>> {
        self.optional_value(index).map(Value::tensor).transpose()
    }

    /// # Errors
    /// When the input is absent or not a tensor.
    pub(crate) fn take(&mut self, index: usize) -> Result<Tensor> {
        self.take_value(index)?.into_tensor()
    }

    /// # Errors
    /// When the input is absent.
    pub(crate) fn take_value(&mut self, index: usize) -> Result<Value> {
        self.values
            .get_mut(index)
            .and_then(Option::take)
            .ok_or_else(|| Error::invalid(format!("input {index} is required")))
    }
}

/// Typed access to a node's attributes.
pub(crate) struct Attributes<'a>(pub(crate) &'a NodeDef);

impl<'a> Attributes<'a> {
    fn wrong(&self, name: &str, want: &str) -> Error {
        Error::invalid(format!("{}: attribute {name} must be {want}", self.0.describe()))
    }

    /// # Errors
    /// When present with another type.
    pub(crate) fn int(&self, name: &str) -> Result<Option<i64>> {
        match self.0.attribute(name) {
            None => Ok(None),
            Some(Attribute::Int(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(name, "an integer")),
        }
    }

    /// # Errors
    /// When present with another type.
    pub(crate) fn int_or(&self, name: &str, default: i64) -> Result<i64> {
        Ok(self.int(name)?.unwrap_or(default))
    }

    /// # Errors
    /// When present with another type.
    pub(crate) fn float(&self, name: &str) -> Result<Option<f32>> {
        match self.0.attribute(name) {
            None => Ok(None),
            Some(Attribute::Float(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(name, "a float")),
        }
    }

    /// # Errors
    /// When present with another type.
    pub(crate) fn float_or(&self, name: &str, default: f32) -> Result<f32> {
        Ok(self.float(name)?.unwrap_or(default))
    }

    /// # Errors
    /// When present with another type. An empty list may arrive typed as
    /// another list and reads as empty.
    pub(crate) fn ints(&self, name: &str) -> Result<Option<&'a [i64]>> {
        match self.0.attribute(name) {
            None => Ok(None),
            Some(Attribute::Ints(values)) => Ok(Some(values)),
            Some(Attribute::Floats(values)) if values.is_empty() => Ok(Some(&[])),
            Some(_) => Err(self.wrong(name, "a list of integers")),
        }
    }

    /// # Errors
    /// As [`Attributes::ints`].
    pub(crate) fn floats(&self, name: &str) -> Result<Option<&'a [f32]>> {
        match self.0.attribute(name) {
            None => Ok(None),
            Some(Attribute::Floats(values)) => Ok(Some(values)),
            Some(Attribute::Ints(values)) if values.is_empty() => Ok(Some(&[])),
            Some(_) => Err(self.wrong(name, "a list of floats")),
        }
    }

    /// # Errors
    /// When present with another type or not UTF-8.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.0.attribute(name) {
            None => Ok(None),
            Some(Attribute::String(bytes)) => {
                std::str::from_utf8(bytes).map(Some).map_err(|_| self.wrong(name, "UTF-8 text"))
            }
            Some(_) => Err(self.wrong(name, "text")),
        }
    }

    /// # Errors
    /// When present with another type.
    pub(crate) fn texts(&self, name: &str) -> Result<Option<&'a [Vec<u8>]>> {
        match self.0.attribute(name) {
            None => Ok(None),
            Some(Attribute::Strings(values)) => Ok(Some(values)),
            Some(Attribute::Ints(values)) if values.is_empty() => Ok(Some(&[])),
            Some(_) => Err(self.wrong(name, "a list of strings")),
        }
    }

    /// # Errors
    /// When present with another type.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<&'a Tensor>> {
        match self.0.attribute(name) {
            None => Ok(None),
            Some(Attribute::Tensor(tensor)) => Ok(Some(tensor)),
            Some(_) => Err(self.wrong(name, "a tensor")),
        }
    }

    /// # Errors
    /// When absent or of another type.
    pub(crate) fn graph(&self, name: &str) -> Result<Arc<GraphBody>> {
        match self.0.attribute(name) {
            Some(Attribute::Graph(body)) => Ok(body.clone()),
            _ => Err(self.wrong(name, "a graph")),
        }
    }
}
