//! Small ONNX files written by hand: models of known answers for the swap and
//! crash tests, and malformed ones for the hostile tests.

use std::iter::repeat_with;

const FLOAT: u64 = 1;
const INT64: u64 = 7;
const BOOL: u64 = 9;

/// A protobuf message under construction.
#[derive(Clone, Debug, Default)]
pub struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    #[must_use]
    pub fn int(mut self, field: u64, value: u64) -> Self {
        self.key(field, 0);
        self.varint(value);
        self
    }

    #[must_use]
    pub fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    #[must_use]
    pub fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    #[must_use]
    pub fn message(self, field: u64, value: &Message) -> Self {
        self.bytes(field, &value.0)
    }

    #[must_use]
    pub fn each(self, field: u64, values: &[Message]) -> Self {
        values.iter().fold(self, |message, value| message.message(field, value))
    }
}

/// A graph under construction. Every method adds one thing.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: Vec<Message>,
    initializers: Vec<Message>,
    inputs: Vec<Message>,
    outputs: Vec<Message>,
}

impl Graph {
    #[must_use]
    pub fn input(mut self, name: &str, shape: &[i64]) -> Self {
        self.inputs.push(value_info(name, FLOAT, shape));
        self
    }

    #[must_use]
    pub fn output(mut self, name: &str, shape: &[i64]) -> Self {
        self.outputs.push(value_info(name, FLOAT, shape));
        self
    }

    /// An input that is an iteration number, as a loop's body has.
    #[must_use]
    pub fn input_int64(mut self, name: &str) -> Self {
        self.inputs.push(value_info(name, INT64, &[]));
        self
    }

    #[must_use]
    pub fn input_bool(mut self, name: &str) -> Self {
        self.inputs.push(value_info(name, BOOL, &[]));
        self
    }

    #[must_use]
    pub fn output_bool(mut self, name: &str) -> Self {
        self.outputs.push(value_info(name, BOOL, &[]));
        self
    }

    #[must_use]
    pub fn floats(mut self, name: &str, shape: &[i64], values: &[f32]) -> Self {
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.initializers.push(tensor(name, FLOAT, shape, &raw));
        self
    }

    #[must_use]
    pub fn int64s(mut self, name: &str, shape: &[i64], values: &[i64]) -> Self {
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.initializers.push(tensor(name, INT64, shape, &raw));
        self
    }

    #[must_use]
    pub fn bool(mut self, name: &str, value: bool) -> Self {
        self.initializers.push(tensor(name, BOOL, &[], &[u8::from(value)]));
        self
    }

    #[must_use]
    pub fn node(self, op: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        self.node_with(op, inputs, outputs, &[])
    }

    #[must_use]
    pub fn node_with(
        mut self,
        op: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[Message],
    ) -> Self {
        let node = inputs.iter().fold(Message::default(), |node, name| node.text(1, name));
        let node = outputs.iter().fold(node, |node, name| node.text(2, name));
        let name = format!("{op}_{}", self.nodes.len());
        self.nodes.push(node.text(3, &name).text(4, op).each(5, attributes));
        self
    }

    fn message(&self) -> Message {
        Message::default()
            .each(1, &self.nodes)
            .text(2, "graph")
            .each(5, &self.initializers)
            .each(11, &self.inputs)
            .each(12, &self.outputs)
    }

    /// The file.
    pub fn model(&self) -> Vec<u8> {
        self.model_of_opset(17)
    }

    pub fn model_of_opset(&self, opset: u64) -> Vec<u8> {
        let opset = Message::default().text(1, "").int(2, opset);
        Message::default().int(1, 8).message(8, &opset).message(7, &self.message()).0
    }
}

/// An attribute that holds a graph: the body of a loop or a branch.
pub fn graph_attribute(name: &str, graph: &Graph) -> Message {
    Message::default().text(1, name).message(6, &graph.message()).int(20, 5)
}

/// An attribute that holds one number.
pub fn int_attribute(name: &str, value: i64) -> Message {
    Message::default().text(1, name).int(3, value as u64).int(20, 2)
}

fn value_info(name: &str, element: u64, shape: &[i64]) -> Message {
    let dimension = |size: &i64| match u64::try_from(*size) {
        Ok(size) => Message::default().int(1, size),
        Err(_) => Message::default().text(2, "N"),
    };
    let dimensions: Vec<_> = shape.iter().map(dimension).collect();
    let shape = Message::default().each(1, &dimensions);
    let tensor = Message::default().int(1, element).message(2, &shape);
    Message::default().text(1, name).message(2, &Message::default().message(1, &tensor))
}

fn tensor(name: &str, element: u64, shape: &[i64], raw: &[u8]) -> Message {
    let dims = shape.iter().fold(Message::default(), |tensor, size| tensor.int(1, *size as u64));
    dims.int(2, element).text(8, name).bytes(9, raw)
}

/// A network of the size of the digits demo: `x` `[N, 64]` to `y` `[N, 10]`.
/// Versions differ by `tag`, which is added to every output.
pub fn tagged_network(tag: f32) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut weights =
        |count: usize| -> Vec<f32> { repeat_with(|| random.f32() - 0.5).take(count).collect() };
    let (first, second) = (weights(64 * 100), weights(100 * 10));
    Graph::default()
        .input("x", &[-1, 64])
        .output("y", &[-1, 10])
        .floats("w1", &[64, 100], &first)
        .floats("b1", &[100], &[0.1; 100])
        .floats("w2", &[100, 10], &second)
        .floats("b2", &[10], &[tag; 10])
        .node("Gemm", &["x", "w1", "b1"], &["h"])
        .node("Relu", &["h"], &["r"])
        .node("Gemm", &["r", "w2", "b2"], &["y"])
        .model()
}

/// `y = x + tag`, of shape `[N, 1]`: the smallest model with an answer of its own.
pub fn tagged_sum(tag: f32) -> Vec<u8> {
    Graph::default()
        .input("x", &[-1, 1])
        .output("y", &[-1, 1])
        .floats("tag", &[1], &[tag])
        .node("Add", &["x", "tag"], &["y"])
        .model()
}

/// A model whose constants take `products` multiplications of square matrices
/// of this size to compute, all of it while it is loaded.
pub fn slow_to_load(size: i64, products: usize) -> Vec<u8> {
    let value = tensor("", FLOAT, &[1], &(1.0 / size as f32).to_le_bytes());
    let value = Message::default().text(1, "value").message(5, &value).int(20, 4);
    let graph = Graph::default()
        .input("x", &[-1, 1])
        .output("y", &[-1, 1])
        .int64s("shape", &[2], &[size, size])
        .node_with("ConstantOfShape", &["shape"], &["m0"], &[value]);
    let names: Vec<String> = (0..=products).map(|index| format!("m{index}")).collect();
    let graph = names
        .windows(2)
        .fold(graph, |graph, pair| graph.node("MatMul", &[&pair[0], "m0"], &[&pair[1]]));
    graph
        .node_with("ReduceMax", &[&names[products]], &["top"], &[int_attribute("keepdims", 0)])
        .node("Add", &["x", "top"], &["y"])
        .model()
}

/// A loop without a trip count whose condition stays true.
pub fn endless_loop() -> Vec<u8> {
    let body = Graph::default()
        .input_int64("i")
        .input_bool("go_in")
        .input("v_in", &[-1, 1])
        .node("Identity", &["go_in"], &["go_out"])
        .node("Add", &["v_in", "v_in"], &["v_out"])
        .output_bool("go_out")
        .output("v_out", &[-1, 1]);
    Graph::default()
        .input("x", &[-1, 1])
        .output("y", &[-1, 1])
        .bool("go", true)
        .node_with("Loop", &["", "go", "x"], &["y"], &[graph_attribute("body", &body)])
        .model()
}
