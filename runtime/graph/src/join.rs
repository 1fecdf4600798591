//! Graphs that run one after the other, as one graph: what one gives and a
//! later one takes under the same name is connected.

use crate::rename::rename;
use mortise_types::{GraphDef, Signature, TensorSpec, ValueDef, ValueId, ValueSource};
use std::collections::HashMap;

/// The graph that runs all of `parts` in order, and gives what the last one
/// gives. What a part takes and no part before it gives is an input, shared by
/// all that take it. Assets are renamed by [`joined_asset`].
///
/// `None` where the parts are not proven to fit: each checks its inputs when
/// it runs alone, and the joined graph checks only its own.
pub fn join(parts: &[(&GraphDef, &Signature)]) -> Option<GraphDef> {
    let mut joined = Joined::default();
    let (last, before) = parts.split_last()?;
    for (index, (def, signature)) in before.iter().enumerate() {
        let outputs = joined.append(index, def)?;
        for (value, spec) in outputs.into_iter().zip(&signature.outputs) {
            joined.named.insert(spec.name.clone(), (value, spec.clone()));
        }
    }
    let (def, _) = last;
    joined.def.body.outputs = joined.append(before.len(), def)?;
    joined.def.output_names = def.output_names.clone();
    Some(joined.def)
}

/// What an asset of part number `index` is called in the joined graph.
pub fn joined_asset(index: usize, name: &str) -> String {
    format!("{index}/{name}")
}

#[derive(Default)]
struct Joined {
    def: GraphDef,
    /// What exists when the next part runs.
    named: HashMap<String, (ValueId, TensorSpec)>,
}

impl Joined {
    /// Puts a part behind the others; gives the values of its outputs.
    fn append(&mut self, index: usize, part: &GraphDef) -> Option<Vec<ValueId>> {
        let mut renaming = Renaming { first: self.def.values.len() as u32, inputs: HashMap::new() };
        for (value, spec) in part.body.inputs.iter().zip(&part.inputs) {
            let known = self.named.get(&spec.name);
            if known.is_some_and(|(_, gives)| !always_fits(spec, gives)) {
                return None;
            }
            let outer = known.map(|(value, _)| *value);
            let outer = outer.unwrap_or_else(|| self.add_input(renaming.moved(*value), spec));
            renaming.inputs.insert(*value, outer);
        }
        self.def.values.extend(part.values.iter().map(|value| value_of_part(value, index)));
        let body = rename(&part.body, &|value| renaming.value(value));
        self.def.body.nodes.extend(body.nodes);
        Some(body.outputs)
    }

    fn add_input(&mut self, value: ValueId, spec: &TensorSpec) -> ValueId {
        self.named.insert(spec.name.clone(), (value, spec.clone()));
        self.def.body.inputs.push(value);
        self.def.inputs.push(spec.clone());
        value
    }
}

/// Whether every tensor that is as `gives` says passes the check of `takes`.
fn always_fits(takes: &TensorSpec, gives: &TensorSpec) -> bool {
    takes.dtype == gives.dtype
        && !gives.has_any_rank()
        && takes.shape.len() == gives.shape.len()
        && takes.shape.iter().zip(&gives.shape).all(|(&takes, &gives)| takes < 0 || takes == gives)
}

fn value_of_part(value: &ValueDef, index: usize) -> ValueDef {
    let mut value = value.clone();
    if let ValueSource::Weight(weight) = &mut value.source {
        weight.asset = joined_asset(index, &weight.asset).into();
    }
    value
}

/// Numbers of a part's values in the joined graph.
struct Renaming {
    first: u32,
    /// By input of the part: what is connected to it.
    inputs: HashMap<ValueId, ValueId>,
}

impl Renaming {
    fn moved(&self, value: ValueId) -> ValueId {
        ValueId(value.0 + self.first)
    }

    fn value(&self, value: ValueId) -> ValueId {
        self.inputs.get(&value).copied().unwrap_or_else(|| self.moved(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortise_types::{Attribute, DType, GraphBody, NodeDef, Shape, WeightRef};
    use std::sync::Arc;

    fn spec(name: &str, shape: &[i64]) -> TensorSpec {
        TensorSpec::new(name, DType::F32, shape)
    }

    /// `output = Add(input, weight)`, with an `If` that captures the sum.
    fn part(input: &TensorSpec, output: &str) -> GraphDef {
        let value = |source| ValueDef { name: String::new(), source };
        let node = |inputs: &[u32], output: u32, attributes| NodeDef {
            domain: "".into(),
            op: "Add".into(),
            opset: 14,
            name: String::new(),
            inputs: inputs.iter().map(|index| Some(ValueId(*index))).collect(),
            attributes,
            outputs: vec![Some(ValueId(output))],
        };
        let weight = WeightRef {
            asset: "w".into(),
            offset: 0,
            length: 4,
            dtype: DType::F32,
            shape: Shape::from_slice(&[1]),
        };
        let inner = GraphBody { nodes: vec![], inputs: vec![], outputs: vec![ValueId(2)] };
        let branch = vec![("then_branch".into(), Attribute::Graph(Arc::new(inner)))];
        GraphDef {
            values: vec![
                value(ValueSource::Input),
                value(ValueSource::Weight(weight)),
                value(ValueSource::Node),
                value(ValueSource::Node),
            ],
            body: GraphBody {
                inputs: vec![ValueId(0)],
                nodes: vec![node(&[0, 1], 2, vec![]), node(&[2], 3, branch)],
                outputs: vec![ValueId(3)],
            },
            inputs: vec![input.clone()],
            output_names: vec![output.to_owned()],
        }
    }

    fn gives(output: TensorSpec) -> Signature {
        Signature { inputs: Vec::new(), outputs: vec![output] }
    }

    #[test]
    fn values_captures_and_assets_are_renamed() {
        let (a, b) = (part(&spec("x", &[-1, 1]), "y"), part(&spec("y", &[-1, 1]), "z"));
        let (between, last) = (gives(spec("y", &[-1, 1])), gives(spec("z", &[-1, 1])));
        let joined = join(&[(&a, &between), (&b, &last)]).unwrap();
        assert_eq!(joined.inputs, [spec("x", &[-1, 1])]);
        assert_eq!(joined.output_names, ["z"]);
        assert_eq!(joined.body.outputs, [ValueId(7)]);
        let second = &joined.body.nodes[2];
        assert_eq!(second.inputs, [Some(ValueId(3)), Some(ValueId(5))]);
        let Some(Attribute::Graph(inner)) = joined.body.nodes[3].attribute("then_branch") else {
            panic!("the branch is gone")
        };
        assert_eq!(inner.outputs, [ValueId(6)]);
        let ValueSource::Weight(weight) = &joined.values[5].source else { panic!("no weight") };
        assert_eq!(&*weight.asset, "1/w");
    }

    #[test]
    fn what_may_not_fit_is_not_joined() {
        let a = part(&spec("x", &[-1, 1]), "y");
        for (gives_shape, takes_shape, fits) in [
            (&[-1i64, 3][..], &[-1i64, 3][..], true),
            (&[2, 3], &[-1, -1], true),
            (&[-1, -1], &[-1, 3], false),
            (&[-1, 4], &[-1, 3], false),
            (&[-1], &[-1, 3], false),
        ] {
            let b = part(&spec("y", takes_shape), "z");
            let (between, last) = (gives(spec("y", gives_shape)), gives(spec("z", &[-1])));
            let joined = join(&[(&a, &between), (&b, &last)]);
            assert_eq!(joined.is_some(), fits, "{gives_shape:?} into {takes_shape:?}");
        }
    }
}
