//! What can be known of dtypes and shapes before a run. Declarations in files
//! are often wrong, so only inputs and operators are believed.

mod control;
mod ml;
mod rules;
mod shapes;

pub(crate) use shapes::slice_axes;

use mortise_types::{Attribute, DType, GraphBody, NodeDef, Value, ValueId};

/// What inference knows about a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fact {
    /// `None` when unknown or when the value is not a tensor.
    pub dtype: Option<DType>,
    /// Sizes, `-1` for an unknown one; `None` when not even the rank is known.
    pub shape: Option<Vec<i64>>,
}

impl Fact {
    pub(crate) fn new(dtype: Option<DType>, shape: Option<Vec<i64>>) -> Self {
        Self { dtype, shape }
    }

    pub(crate) fn of(value: &Value) -> Self {
        match value {
            Value::Tensor(tensor) => Self {
                dtype: Some(tensor.dtype()),
                shape: Some(tensor.shape().iter().map(|&dim| dim as i64).collect()),
            },
            _ => Self::default(),
        }
    }

    /// What holds of both.
    pub(crate) fn joined(&self, other: &Self) -> Self {
        let dtype = self.dtype.filter(|_| self.dtype == other.dtype);
        let shape = match (&self.shape, &other.shape) {
            (Some(a), Some(b)) if a.len() == b.len() => {
                Some(a.iter().zip(b).map(|(&a, &b)| if a == b { a } else { -1 }).collect())
            }
            _ => None,
        };
        Self { dtype, shape }
    }

    pub(crate) fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(Vec::len)
    }
}

/// The shape when every dimension is known.
pub(crate) fn static_shape(fact: &Fact) -> Option<Vec<usize>> {
    fact.shape.as_ref()?.iter().map(|&dim| usize::try_from(dim).ok()).collect()
}

pub(crate) fn infer_body(body: &GraphBody, constants: &[Option<Value>], facts: &mut [Fact]) {
    infer_body_at(body, constants, facts, 0);
}

fn infer_body_at(body: &GraphBody, constants: &[Option<Value>], facts: &mut [Fact], depth: usize) {
    for node in &body.nodes {
        infer_node_at(node, constants, facts, depth);
    }
}

/// Writes what is known of the node's outputs into `facts`.
pub(crate) fn infer_node(node: &NodeDef, constants: &[Option<Value>], facts: &mut [Fact]) {
    infer_node_at(node, constants, facts, 0);
}

fn infer_node_at(node: &NodeDef, constants: &[Option<Value>], facts: &mut [Fact], depth: usize) {
    let of_bodies = control::infer(node, control::Scope { constants, facts: &mut *facts, depth });
    let inferred = of_bodies.or_else(|| rules::infer(&NodeView { node, constants, facts }));
    for (output, fact) in node.outputs.iter().zip(inferred.unwrap_or_default()) {
        if let Some(target) = output.and_then(|value| facts.get_mut(value.index())) {
            *target = fact;
        }
    }
}

/// A node with what is known of its inputs.
pub(crate) struct NodeView<'a> {
    pub(crate) node: &'a NodeDef,
    pub(crate) constants: &'a [Option<Value>],
    pub(crate) facts: &'a [Fact],
}

impl NodeView<'_> {
    pub(crate) fn input(&self, index: usize) -> Option<ValueId> {
        self.node.inputs.get(index).copied().flatten()
    }

    pub(crate) fn fact(&self, index: usize) -> Fact {
        let fact = self.input(index).and_then(|value| self.facts.get(value.index()));
        fact.cloned().unwrap_or_default()
    }

    pub(crate) fn dtype(&self, index: usize) -> Option<DType> {
        self.fact(index).dtype
    }

    pub(crate) fn shape(&self, index: usize) -> Option<Vec<i64>> {
        self.fact(index).shape
    }

    /// The integers of a constant input.
    pub(crate) fn constant_ints(&self, index: usize) -> Option<Vec<i64>> {
        let value = self.constants.get(self.input(index)?.index())?.as_ref()?;
        let tensor = value.tensor().ok()?;
        match tensor.dtype() {
            DType::I64 => Some(tensor.as_slice::<i64>().ok()?.to_vec()),
            DType::I32 => {
                Some(tensor.as_slice::<i32>().ok()?.iter().map(|&dim| i64::from(dim)).collect())
            }
            _ => None,
        }
    }

    pub(crate) fn int(&self, name: &str) -> Option<i64> {
        match self.node.attribute(name) {
            Some(Attribute::Int(value)) => Some(*value),
            _ => None,
        }
    }

    pub(crate) fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.node.attribute(name) {
            Some(Attribute::Ints(values)) => Some(values),
            _ => None,
        }
    }

    /// An attribute in old opsets, a constant input in new ones.
    pub(crate) fn ints_or_input(&self, name: &str, index: usize) -> Option<Vec<i64>> {
        match self.input(index) {
            Some(_) => self.constant_ints(index),
            None => self.ints(name).map(<[i64]>::to_vec),
        }
    }

    /// How many elements a list attribute has; 0 when it is absent.
    pub(crate) fn list_len(&self, name: &str) -> usize {
        match self.node.attribute(name) {
            Some(Attribute::Ints(values)) => values.len(),
            Some(Attribute::Floats(values)) => values.len(),
            Some(Attribute::Strings(values)) => values.len(),
            Some(Attribute::Tensor(tensor)) => tensor.len(),
            _ => 0,
        }
    }
}

/// `axis` counted from the front.
pub(crate) fn resolve_axis(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis + rank } else { axis };
    (0..rank).contains(&axis).then_some(axis as usize)
}
