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

    /// The fields of both.
    #[must_use]
    pub fn append(mut self, other: &Message) -> Self {
        self.0.extend_from_slice(&other.0);
        self
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
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

/// A perceptron of square layers: `x` `[N, width]` to `y` `[N, width]`.
pub fn perceptron(layers: usize, width: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(3);
    // Scaled so that values neither vanish nor grow from layer to layer.
    let scale = (6.0 / width as f32).sqrt();
    let mut graph =
        Graph::default().input("x", &[-1, width as i64]).output("y", &[-1, width as i64]);
    for layer in 0..layers {
        let (input, output) = (layer_name(layer), layer_name(layer + 1));
        let (weight, sum) = (format!("w{layer}"), format!("s{layer}"));
        let count = width * width;
        let values: Vec<f32> =
            repeat_with(|| (random.f32() * 2.0 - 1.0) * scale).take(count).collect();
        graph = graph
            .floats(&weight, &[width as i64, width as i64], &values)
            .node("MatMul", &[&input, &weight], &[&sum])
            .node("Relu", &[&sum], &[&output]);
    }
    graph.node("Identity", &[&layer_name(layers)], &["y"]).model()
}

fn layer_name(layer: usize) -> String {
    if layer == 0 { "x".to_owned() } else { format!("h{layer}") }
}

/// Numbers in a row of [`heavy`]'s input.
pub const HEAVY_COLUMNS: usize = 128;

/// A model of `x` `[N, 128]` to `y` `[N, 128]` that computes for long on little
/// data: each number becomes a row of `width`, which goes through `layers`
/// square layers. Merging gains nothing, since one request fills the kernels.
pub fn heavy(layers: usize, width: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(4);
    let (width, scale) = (width as i64, (6.0 / width as f32).sqrt());
    let mut many = |count: i64| -> Vec<f32> {
        repeat_with(|| (random.f32() * 2.0 - 1.0) * scale).take(count as usize).collect()
    };
    let mut graph = Graph::default()
        .input("x", &[-1, HEAVY_COLUMNS as i64])
        .output("y", &[-1, HEAVY_COLUMNS as i64])
        .int64s("column", &[3], &[-1, HEAVY_COLUMNS as i64, 1])
        .floats("spread", &[1, 1, width], &many(width))
        .node("Reshape", &["x", "column"], &["c"])
        .node("Mul", &["c", "spread"], &["h0"]);
    for layer in 0..layers {
        let names = [format!("h{layer}"), format!("w{layer}"), format!("s{layer}")];
        graph = graph
            .floats(&names[1], &[width, width], &many(width * width))
            .node("MatMul", &[&names[0], &names[1]], &[&names[2]])
            .node("Relu", &[&names[2]], &[&format!("h{}", layer + 1)]);
    }
    let axes = Message::default().text(1, "axes").int(8, 2).int(20, 7);
    let last = format!("h{layers}");
    graph.node_with("ReduceMean", &[&last], &["y"], &[axes, int_attribute("keepdims", 0)]).model()
}

/// `y = x + h` and `h_out = x + h`: a running sum over the requests of a
/// sequence, all of shape `[N, 1]`.
pub fn running_sum() -> Vec<u8> {
    Graph::default()
        .input("x", &[-1, 1])
        .input("h", &[-1, 1])
        .output("y", &[-1, 1])
        .output("h_out", &[-1, 1])
        .node("Add", &["x", "h"], &["y"])
        .node("Identity", &["y"], &["h_out"])
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

/// Sum and difference of `INPUT0` and `INPUT1`, both `[-1, width]`.
pub fn add_sub(width: i64) -> Vec<u8> {
    Graph::default()
        .input("INPUT0", &[-1, width])
        .input("INPUT1", &[-1, width])
        .output("OUTPUT0", &[-1, width])
        .output("OUTPUT1", &[-1, width])
        .node("Add", &["INPUT0", "INPUT1"], &["OUTPUT0"])
        .node("Sub", &["INPUT0", "INPUT1"], &["OUTPUT1"])
        .model()
}

/// A model whose constants take `products` matrix products of 2 × 2²⁰ × `depth`
/// operations each to compute, all of it while it is loaded. What the products
/// give is small, so that many fit into the memory that constants may take.
pub fn slow_to_load(depth: i64, products: usize) -> Vec<u8> {
    const SIDE: i64 = 1024;
    let value = tensor("", FLOAT, &[1], &(1.0 / depth as f32).to_le_bytes());
    let value = Message::default().text(1, "value").message(5, &value).int(20, 4);
    let graph = Graph::default()
        .input("x", &[-1, 1])
        .output("y", &[-1, 1])
        .int64s("wide", &[2], &[SIDE, depth])
        .int64s("tall", &[2], &[depth, SIDE])
        .node_with("ConstantOfShape", &["wide"], &["a"], std::slice::from_ref(&value))
        .node_with("ConstantOfShape", &["tall"], &["b"], std::slice::from_ref(&value));
    let names: Vec<String> = (0..products).map(|index| format!("p{index}")).collect();
    let graph = names.iter().fold(graph, |graph, name| graph.node("MatMul", &["a", "b"], &[name]));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    graph
        .node("Max", &names, &["most"])
        .node_with("ReduceMax", &["most"], &["top"], &[int_attribute("keepdims", 0)])
        .node("Add", &["x", "top"], &["y"])
        .model()
}

/// `y = x + tag`, of shape `[N, 1]`, after `products` products of 256 × 256
/// matrices that add zero: each takes a good part of a millisecond a row, and
/// none can be computed ahead.
pub fn slow_tagged_sum(tag: f32, products: usize) -> Vec<u8> {
    let names: Vec<String> = (0..=products).map(|index| format!("h{index}")).collect();
    let graph = Graph::default()
        .input("x", &[-1, 1])
        .output("y", &[-1, 1])
        .floats("tag", &[1], &[tag])
        .int64s("square", &[2], &[256, 256])
        .int64s("deep", &[3], &[-1, 1, 1])
        .int64s("inner", &[2], &[1, 2])
        .node("ConstantOfShape", &["square"], &["zeros"])
        .node("Reshape", &["x", "deep"], &["column"])
        .node("Add", &["column", "zeros"], &[&names[0]]);
    names
        .windows(2)
        .fold(graph, |graph, pair| graph.node("MatMul", &[&pair[0], "zeros"], &[&pair[1]]))
        .node_with(
            "ReduceSum",
            &[&names[products], "inner"],
            &["zero"],
            &[int_attribute("keepdims", 0)],
        )
        .node("Reshape", &["zero", "column_shape"], &["nothing"])
        .int64s("column_shape", &[2], &[-1, 1])
        .node("Add", &["x", "tag"], &["sum"])
        .node("Add", &["sum", "nothing"], &["y"])
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
