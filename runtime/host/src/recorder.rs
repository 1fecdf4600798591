use crate::PluginLimits;
use crate::limits::{LimitHit, Refusal};
use mortise_types::{
    Attribute, Error, GraphBody, GraphDef, NodeDef, Tensor, TensorSpec, ValueDef, ValueId,
    ValueSource, WeightRef,
};
use std::collections::HashSet;
use std::sync::Arc;

/// Records what a plugin asks of a graph builder into a [`GraphDef`]. Nothing
/// is recorded by a call that fails. Pure: knows no plugin and no device.
#[expect(unreachable_pub, reason = "the generated bindings name it")]
pub struct Recorder {
    limits: Arc<PluginLimits>,
    def: GraphDef,
    /// Which body each value belongs to, by value index.
    owners: Vec<BodyId>,
    /// Bodies under construction, the graph's own first.
    open: Vec<OpenBody>,
    body_count: u32,
    /// Subgraphs that were ended, by handle, until a node takes them.
    ended: Vec<Option<Ended>>,
    words: HashSet<Arc<str>>,
    node_count: usize,
    attribute_bytes: usize,
    constant_bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct BodyId(u32);

/// Constants belong to the outermost body: every other one sees them.
const OUTERMOST: BodyId = BodyId(0);

struct OpenBody {
    id: BodyId,
    body: GraphBody,
}

struct Ended {
    /// The body in which the subgraph was opened: only its nodes see what the
    /// subgraph captured.
    parent: BodyId,
    body: Arc<GraphBody>,
}

/// One operator application, as asked for.
pub(crate) struct NewNode {
    pub domain: String,
    pub op: String,
    pub opset: u32,
    pub name: String,
    pub inputs: Vec<Option<u32>>,
    pub attributes: Vec<(String, NewAttribute)>,
    pub output_count: u32,
}

pub(crate) enum NewAttribute {
    Value(Attribute),
    /// A handle from [`Recorder::end_subgraph`].
    Subgraph(u32),
}

type Result<T> = std::result::Result<T, Refusal>;

fn invalid(message: String) -> Refusal {
    Refusal::Other(Error::invalid(message))
}

/// Adds to a counter, unless that goes over its limit.
fn sum(name: &'static str, used: usize, more: usize, limit: usize) -> Result<usize> {
    match used.checked_add(more) {
        Some(total) if total <= limit => Ok(total),
        _ => Err(LimitHit::count(name, limit).into()),
    }
}

impl Recorder {
    pub(crate) fn new(limits: Arc<PluginLimits>) -> Self {
        Self {
            limits,
            def: GraphDef::default(),
            owners: Vec::new(),
            open: vec![OpenBody { id: OUTERMOST, body: GraphBody::default() }],
            body_count: 1,
            ended: Vec::new(),
            words: HashSet::new(),
            node_count: 0,
            attribute_bytes: 0,
            constant_bytes: 0,
        }
    }

    /// Declares the next input of the graph.
    pub(crate) fn input(&mut self, spec: TensorSpec) -> Result<ValueId> {
        self.at_top("input")?;
        if spec.name.is_empty() || self.def.inputs.iter().any(|other| other.name == spec.name) {
            let message = format!("input name \"{}\" is empty or taken", spec.name);
            return Err(invalid(message));
        }
        if let Some(dim) = spec.shape.iter().find(|&&dim| dim < -1) {
            let message = format!("input \"{}\": {dim} is no size; -1 means any", spec.name);
            return Err(invalid(message));
        }
        let words = self.words_with(spec.name.len() + spec.shape.len() * 8)?;
        let id = self.value(spec.name.clone(), ValueSource::Input, OUTERMOST)?;
        self.attribute_bytes = words;
        self.def.inputs.push(spec);
        self.innermost()?.body.inputs.push(id);
        Ok(id)
    }

    pub(crate) fn constant(&mut self, tensor: Tensor) -> Result<ValueId> {
        let bytes = self.constants_with(&tensor)?;
        let id = self.value(String::new(), ValueSource::Constant(tensor), OUTERMOST)?;
        self.constant_bytes = bytes;
        Ok(id)
    }

    pub(crate) fn weight(&mut self, weight: WeightRef) -> Result<ValueId> {
        let words = self.words_with(weight.asset.len() + weight.shape.len() * 8)?;
        let id = self.value(String::new(), ValueSource::Weight(weight), OUTERMOST)?;
        self.attribute_bytes = words;
        Ok(id)
    }

    /// Applies an operator in the innermost open body.
    pub(crate) fn op(&mut self, node: NewNode) -> Result<Vec<ValueId>> {
        let owner = self.innermost()?.id;
        self.room_for_values(node.output_count as usize)?;
        let inputs = self.visible_inputs(&node)?;
        self.check_attributes(&node, owner)?;
        let nodes = sum("max_graph_nodes", self.node_count, 1, self.limits.max_graph_nodes)?;
        let words = self.words_with(words_of(&node))?;
        let constants = self.constants_with_attributes(&node)?;

        (self.node_count, self.attribute_bytes, self.constant_bytes) = (nodes, words, constants);
        let outputs = (0..node.output_count)
            .map(|_| self.value(node.name.clone(), ValueSource::Node, owner))
            .collect::<Result<Vec<_>>>()?;
        let def = NodeDef {
            domain: self.word(node.domain),
            op: self.word(node.op),
            opset: node.opset,
            name: node.name,
            inputs,
            attributes: self.take_attributes(node.attributes),
            outputs: outputs.iter().copied().map(Some).collect(),
        };
        self.innermost()?.body.nodes.push(def);
        Ok(outputs)
    }

    /// Opens a subgraph inside the innermost open body.
    pub(crate) fn begin_subgraph(&mut self, input_count: u32) -> Result<Vec<ValueId>> {
        let nesting = self.limits.max_graph_nesting;
        if self.open.len() > nesting {
            return Err(LimitHit::count("max_graph_nesting", nesting).into());
        }
        let bodies = self.body_count as usize;
        sum("max_graph_nodes", bodies, 1, self.limits.max_graph_nodes)?;
        self.room_for_values(input_count as usize)?;
        let id = BodyId(self.body_count);
        self.body_count += 1;
        let inputs = (0..input_count)
            .map(|_| self.value(String::new(), ValueSource::Input, id))
            .collect::<Result<Vec<_>>>()?;
        let body = GraphBody { inputs: inputs.clone(), ..GraphBody::default() };
        self.open.push(OpenBody { id, body });
        Ok(inputs)
    }

    /// Closes the innermost open subgraph and returns a handle to it.
    pub(crate) fn end_subgraph(&mut self, outputs: &[u32]) -> Result<u32> {
        if self.open.len() < 2 {
            return Err(invalid("end-subgraph without begin-subgraph".into()));
        }
        let outputs = outputs.iter().map(|&id| self.visible(id)).collect::<Result<Vec<_>>>()?;
        let (Some(mut closed), Some(parent)) = (self.open.pop(), self.open.last()) else {
            return Err(Error::internal("the stack of open subgraphs is empty").into());
        };
        closed.body.outputs = outputs;
        self.ended.push(Some(Ended { parent: parent.id, body: Arc::new(closed.body) }));
        Ok((self.ended.len() - 1) as u32)
    }

    /// Declares the next output of the graph.
    pub(crate) fn output(&mut self, name: String, value: u32) -> Result<()> {
        self.at_top("output")?;
        let value = self.visible(value)?;
        if name.is_empty() || self.def.output_names.contains(&name) {
            return Err(invalid(format!("output name \"{name}\" is empty or taken")));
        }
        self.attribute_bytes = self.words_with(name.len())?;
        let outputs = self.def.output_names.len();
        sum("max_graph_values", outputs, 1, self.limits.max_graph_values)?;
        self.def.output_names.push(name);
        self.innermost()?.body.outputs.push(value);
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<GraphDef> {
        self.at_top("finish")?;
        if self.def.output_names.is_empty() {
            return Err(invalid("the graph has no output; call output before finish".into()));
        }
        self.def.body = std::mem::take(&mut self.innermost()?.body);
        Ok(self.def)
    }

    fn innermost(&mut self) -> Result<&mut OpenBody> {
        let missing = || Error::internal("the graph builder has no open body").into();
        self.open.last_mut().ok_or_else(missing)
    }

    fn at_top(&self, what: &str) -> Result<()> {
        match self.open.len() {
            1 => Ok(()),
            open => {
                let message = format!("{what} with {} subgraph(s) not ended", open - 1);
                Err(invalid(message))
            }
        }
    }

    fn room_for_values(&self, more: usize) -> Result<()> {
        sum("max_graph_values", self.owners.len(), more, self.limits.max_graph_values).map(drop)
    }

    fn value(&mut self, name: String, source: ValueSource, owner: BodyId) -> Result<ValueId> {
        self.room_for_values(1)?;
        let id = u32::try_from(self.owners.len())
            .map_err(|_| LimitHit::count("max_graph_values", u32::MAX))?;
        self.def.values.push(ValueDef { name, source });
        self.owners.push(owner);
        Ok(ValueId(id))
    }

    /// A value that the innermost open body may read.
    fn visible(&self, id: u32) -> Result<ValueId> {
        let owner = self.owners.get(id as usize);
        match owner {
            Some(owner) if self.open.iter().any(|open| open.id == *owner) => Ok(ValueId(id)),
            Some(_) => Err(invalid(format!("value {id} belongs to a subgraph that has ended"))),
            None => Err(invalid(format!("there is no value {id}"))),
        }
    }

    fn visible_inputs(&self, node: &NewNode) -> Result<Vec<Option<ValueId>>> {
        node.inputs
            .iter()
            .map(|input| input.map(|id| self.visible(id)).transpose())
            .collect::<Result<_>>()
            .map_err(|refusal| in_node(refusal, node))
    }

    fn check_attributes(&self, node: &NewNode, owner: BodyId) -> Result<()> {
        let mut names = HashSet::new();
        let mut subgraphs = HashSet::new();
        for (name, value) in &node.attributes {
            if !names.insert(name) {
                return Err(in_node(invalid(format!("attribute \"{name}\" twice")), node));
            }
            let NewAttribute::Subgraph(handle) = value else { continue };
            let ended = self.ended.get(*handle as usize).and_then(Option::as_ref);
            let message = match ended {
                Some(ended) if ended.parent == owner && subgraphs.insert(handle) => continue,
                Some(ended) if ended.parent != owner => "was opened in another body",
                _ => "does not exist or was used before",
            };
            return Err(in_node(invalid(format!("subgraph {handle} {message}")), node));
        }
        Ok(())
    }

    fn take_attributes(
        &mut self,
        attributes: Vec<(String, NewAttribute)>,
    ) -> Vec<(Arc<str>, Attribute)> {
        let mut taken = Vec::with_capacity(attributes.len());
        for (name, value) in attributes {
            let value = match value {
                NewAttribute::Value(value) => Some(value),
                NewAttribute::Subgraph(handle) => self
                    .ended
                    .get_mut(handle as usize)
                    .and_then(Option::take)
                    .map(|ended| Attribute::Graph(ended.body)),
            };
            let name = self.word(name);
            taken.extend(value.map(|value| (name, value)));
        }
        taken
    }

    fn words_with(&self, more: usize) -> Result<usize> {
        let limit = self.limits.max_graph_attribute_bytes;
        sum("max_graph_attribute_bytes", self.attribute_bytes, more, limit)
    }

    fn constants_with(&self, tensor: &Tensor) -> Result<usize> {
        let limit = self.limits.max_graph_constant_bytes;
        sum("max_graph_constant_bytes", self.constant_bytes, tensor.byte_len(), limit)
    }

    fn constants_with_attributes(&self, node: &NewNode) -> Result<usize> {
        let limit = self.limits.max_graph_constant_bytes;
        node.attributes.iter().try_fold(self.constant_bytes, |used, (_, value)| match value {
            NewAttribute::Value(Attribute::Tensor(tensor)) => {
                sum("max_graph_constant_bytes", used, tensor.byte_len(), limit)
            }
            _ => Ok(used),
        })
    }

    /// Operators and attributes have few names: share them.
    fn word(&mut self, text: String) -> Arc<str> {
        if let Some(word) = self.words.get(text.as_str()) {
            return word.clone();
        }
        let word: Arc<str> = text.into();
        self.words.insert(word.clone());
        word
    }
}

/// Puts the node in front of the message.
fn in_node(refusal: Refusal, node: &NewNode) -> Refusal {
    match refusal {
        Refusal::Other(error) => {
            Refusal::Other(error.context(format!("{} \"{}\"", node.op, node.name)))
        }
        limit => limit,
    }
}

/// Bytes that names, inputs and attributes of a node take, other than tensors.
fn words_of(node: &NewNode) -> usize {
    let names = node.domain.len() + node.op.len() + node.name.len();
    let outputs = node.name.len().saturating_mul(node.output_count as usize);
    let attributes: usize =
        node.attributes.iter().map(|(name, value)| name.len() + attribute_bytes(value)).sum();
    (names + node.inputs.len() * 8 + attributes).saturating_add(outputs)
}

fn attribute_bytes(value: &NewAttribute) -> usize {
    match value {
        NewAttribute::Value(Attribute::String(text)) => text.len(),
        NewAttribute::Value(Attribute::Ints(list)) => list.len() * 8,
        NewAttribute::Value(Attribute::Floats(list)) => list.len() * 4,
        NewAttribute::Value(Attribute::Strings(list)) => {
            list.iter().map(|text| text.len() + std::mem::size_of::<Vec<u8>>()).sum()
        }
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortise_types::{DType, Shape};

    fn recorder(change: impl FnOnce(&mut PluginLimits)) -> Recorder {
        let mut limits = PluginLimits::default();
        change(&mut limits);
        Recorder::new(Arc::new(limits))
    }

    fn spec(name: &str) -> TensorSpec {
        TensorSpec::new(name, DType::F32, &[-1])
    }

    fn node(op: &str, inputs: &[u32]) -> NewNode {
        NewNode {
            domain: String::new(),
            op: op.into(),
            opset: 13,
            name: "n".into(),
            inputs: inputs.iter().copied().map(Some).collect(),
            attributes: Vec::new(),
            output_count: 1,
        }
    }

    fn with_subgraph(handle: u32) -> NewNode {
        let attributes = vec![("body".to_owned(), NewAttribute::Subgraph(handle))];
        NewNode { attributes, ..node("Loop", &[]) }
    }

    fn message<T>(result: Result<T>) -> String {
        match result {
            Ok(_) => "ok".into(),
            Err(refusal) => Error::from(refusal).message().to_owned(),
        }
    }

    #[test]
    fn a_subgraph_reads_outer_values_under_one_numbering() {
        let mut r = recorder(|_| ());
        let x = r.input(spec("x")).unwrap();
        let inner = r.begin_subgraph(1).unwrap();
        let sum = r.op(node("Add", &[x.0, inner[0].0])).unwrap();
        let body = r.end_subgraph(&[sum[0].0]).unwrap();
        let y = r.op(with_subgraph(body)).unwrap();
        r.output("y".into(), y[0].0).unwrap();
        let def = r.finish().unwrap();
        assert_eq!(def.values.len(), 4);
        assert_eq!(def.body.outputs, [ValueId(3)]);
        let Some(Attribute::Graph(inner)) = def.body.nodes[0].attribute("body") else {
            panic!("no subgraph")
        };
        assert_eq!(inner.nodes[0].inputs, [Some(ValueId(0)), Some(ValueId(1))]);
        assert_eq!(inner.outputs, [ValueId(2)]);
    }

    #[test]
    fn misuse_is_refused_and_records_nothing() {
        let mut r = recorder(|_| ());
        let x = r.input(spec("x")).unwrap();
        let cases: Vec<(String, &str)> = vec![
            (message(r.input(spec("x"))), "input name \"x\" is empty or taken"),
            (
                message(r.input(TensorSpec::new("z", DType::F32, &[-2]))),
                "input \"z\": -2 is no size; -1 means any",
            ),
            (message(r.op(node("Relu", &[7]))), "Relu \"n\": there is no value 7"),
            (message(r.end_subgraph(&[])), "end-subgraph without begin-subgraph"),
            (
                message(r.op(with_subgraph(0))),
                "Loop \"n\": subgraph 0 does not exist or was used before",
            ),
            (message(r.output(String::new(), x.0)), "output name \"\" is empty or taken"),
        ];
        for (got, want) in cases {
            assert_eq!(got, want);
        }
        let inner = r.begin_subgraph(1).unwrap();
        assert_eq!(message(r.output("y".into(), x.0)), "output with 1 subgraph(s) not ended");
        let body = r.end_subgraph(&[inner[0].0]).unwrap();
        assert_eq!(
            message(r.op(node("Relu", &[inner[0].0]))),
            "Relu \"n\": value 1 belongs to a subgraph that has ended"
        );
        r.begin_subgraph(0).unwrap();
        assert_eq!(
            message(r.op(with_subgraph(body))),
            "Loop \"n\": subgraph 0 was opened in another body"
        );
        r.end_subgraph(&[]).unwrap();
        r.op(with_subgraph(body)).unwrap();
        assert_eq!(
            message(r.op(with_subgraph(body))),
            "Loop \"n\": subgraph 0 does not exist or was used before"
        );
        assert_eq!(message(r.finish()), "the graph has no output; call output before finish");
    }

    #[test]
    fn each_limit_is_named_when_hit() {
        let hit = |name: &str, limit: usize| format!("the limit {name} = {limit} was hit");
        let mut r = recorder(|limits| limits.max_graph_nodes = 1);
        r.op(node("A", &[])).unwrap();
        assert_eq!(message(r.op(node("B", &[]))), hit("max_graph_nodes", 1));

        let mut r = recorder(|limits| limits.max_graph_values = 2);
        let many = NewNode { output_count: 3, ..node("A", &[]) };
        assert_eq!(message(r.op(many)), hit("max_graph_values", 2));
        assert_eq!(message(r.begin_subgraph(3)), hit("max_graph_values", 2));

        let mut r = recorder(|limits| limits.max_graph_nesting = 1);
        r.begin_subgraph(0).unwrap();
        assert_eq!(message(r.begin_subgraph(0)), hit("max_graph_nesting", 1));

        let mut r = recorder(|limits| limits.max_graph_attribute_bytes = 100);
        let wordy = NewNode { output_count: 2, name: "n".repeat(99), ..node("A", &[]) };
        assert_eq!(message(r.op(wordy)), hit("max_graph_attribute_bytes", 100));

        let mut r = recorder(|limits| limits.max_graph_constant_bytes = 7);
        let tensor = Tensor::zeros(DType::F32, &[2]).unwrap();
        assert_eq!(message(r.constant(tensor)), hit("max_graph_constant_bytes", 7));
        let weight = WeightRef {
            asset: "model".into(),
            offset: 0,
            length: 8,
            dtype: DType::F32,
            shape: Shape::from_slice(&[2]),
        };
        assert_eq!(message(r.weight(weight)), "ok");
    }
}
