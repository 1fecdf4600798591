"""Networks with random weights and unusual but valid graphs, built node by node."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def cases():
    cases = {}
    for opset in (7, 9, 11, 13, 17, 21):
        cases[f"lenet_opset_{opset}"] = lambda opset=opset: lenet(opset)
        cases[f"resnet_opset_{opset}"] = lambda opset=opset: resnet(opset)
    for opset in (9, 11, 13, 17, 21):
        cases[f"bert_opset_{opset}"] = lambda opset=opset: bert(opset)
    return cases | {
        "function_nested": function_nested,
        "function_in_branch": function_in_branch,
        "two_opset_imports": two_opset_imports,
        "if_captures": if_captures,
        "loop_captures": loop_captures,
        "scan_captures": scan_captures,
        "initializer_as_input": initializer_as_input,
        "wrong_declared_shape": wrong_declared_shape,
        "mixed_output_types": mixed_output_types,
        "constant_kinds": constant_kinds,
        "packed_initializers": packed_initializers,
    }


class Net:
    """Collects nodes and weights under made-up names."""

    def __init__(self, opset, seed=0):
        self.opset, self.rng = opset, np.random.default_rng(seed)
        self.nodes, self.weights = [], []

    def op(self, kind, *inputs, **attributes):
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"node_{name}", **attributes))
        return name

    def weight(self, *shape, scale=None):
        fan_in = int(np.prod(shape[1:])) or 1
        scale = scale if scale is not None else fan_in ** -0.5
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def constant(self, array):
        array = np.asarray(array)
        name = f"w_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values):
        return self.constant(np.array(values, np.int64))

    def model(self, inputs, outputs, **kwargs):
        graph = helper.make_graph(self.nodes, "graph", inputs, outputs, self.weights)
        return finish(graph, self.opset, **kwargs)


def finish(graph, opset, **kwargs):
    imports = kwargs.pop("opset_imports", [helper.make_opsetid("", opset)])
    return helper.make_model(graph, opset_imports=imports, ir_version=min(10, 3 if opset < 9 else 8), **kwargs)


def value(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def alias_inputs(net, names):
    """Files of IR version 3 list every initialiser among the inputs."""
    if net.opset >= 9:
        return names
    return names + [value(weight.name, list(weight.dims), weight.data_type) for weight in net.weights]


def lenet(opset):
    net = Net(opset)
    x = net.op("Conv", "image", net.weight(6, 1, 5, 5), net.weight(6), kernel_shape=[5, 5], pads=[2, 2, 2, 2])
    x = net.op("MaxPool", net.op("Relu", x), kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Conv", x, net.weight(16, 6, 5, 5), net.weight(16), kernel_shape=[5, 5])
    x = net.op("AveragePool", net.op("Tanh", x), kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Flatten", x)
    for size_in, size_out in ((400, 120), (120, 84)):
        x = net.op("Relu", net.op("Gemm", x, net.weight(size_out, size_in), net.weight(size_out), transB=1))
    x = net.op("Gemm", x, net.weight(10, 84), net.weight(10), transB=1)
    net.nodes.append(helper.make_node("Softmax", [x], ["probabilities"], axis=1))
    image = net.rng.standard_normal((3, 1, 28, 28)).astype(np.float32)
    inputs = alias_inputs(net, [value("image", ["n", 1, 28, 28])])
    return net.model(inputs, [value("probabilities", ["n", 10])]), {"image": image}


def resnet(opset):
    net = Net(opset)
    x = conv_norm(net, "image", 3, 8, 7, 2)
    x = net.op("MaxPool", net.op("Relu", x), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for channels_in, channels, stride in ((8, 8, 1), (8, 16, 2), (16, 32, 2)):
        x = block(net, x, channels_in, channels, stride)
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    net.nodes.append(helper.make_node(
        "Gemm", [x, net.weight(5, 32), net.weight(5)], ["logits"], transB=1))
    image = net.rng.standard_normal((2, 3, 64, 64)).astype(np.float32)
    inputs = alias_inputs(net, [value("image", ["n", 3, 64, 64])])
    return net.model(inputs, [value("logits", ["n", 5])]), {"image": image}


def conv_norm(net, x, channels_in, channels, size, stride, groups=1):
    pad = size // 2
    x = net.op("Conv", x, net.weight(channels, channels_in // groups, size, size), kernel_shape=[size, size],
               strides=[stride, stride], pads=[pad] * 4, group=groups)
    variance = net.constant(net.rng.uniform(0.5, 2, channels).astype(np.float32))
    return net.op("BatchNormalization", x, net.weight(channels), net.weight(channels), net.weight(channels), variance)


def block(net, x, channels_in, channels, stride):
    y = net.op("Relu", conv_norm(net, x, channels_in, channels, 3, stride))
    y = net.op("Relu", conv_norm(net, y, channels, channels, 3, 1, groups=channels))
    y = conv_norm(net, y, channels, channels, 1, 1)
    if stride != 1 or channels_in != channels:
        x = conv_norm(net, x, channels_in, channels, 1, stride)
    return net.op("Relu", net.op("Add", x, y))


def bert(opset, layers=2, width=32, heads=4, vocabulary=50):
    net = Net(opset)
    x = net.op("Gather", net.weight(vocabulary, width, scale=1.0), "input_ids")
    segments = net.op("Gather", net.weight(2, width, scale=1.0), "token_type_ids")
    length = net.op("Gather", net.op("Shape", "input_ids"), net.constant(np.int64(1)), axis=0)
    if opset >= 11:
        positions = net.op("Range", net.constant(np.int64(0)), length, net.constant(np.int64(1)))
    else:
        counts = net.op("ConstantOfShape", unsqueeze(net, length, 0), value=helper.make_tensor("v", INT64, [1], [1]))
        positions = net.op("Squeeze", net.op("NonZero", counts), axes=[0])
    x = net.op("Add", net.op("Add", x, segments), net.op("Gather", net.weight(16, width, scale=1.0), positions))
    x = layer_norm(net, x, width)
    mask = net.op("Cast", unsqueeze(net, unsqueeze(net, "attention_mask", 1), 2), to=FLOAT)
    mask = net.op("Mul", net.op("Sub", net.constant(np.float32(1)), mask), net.constant(np.float32(-10000)))
    for _ in range(layers):
        x = layer_norm(net, net.op("Add", x, attention(net, x, mask, width, heads)), width)
        hidden = gelu(net, linear(net, x, width, 2 * width))
        x = layer_norm(net, net.op("Add", x, linear(net, hidden, 2 * width, width)), width)
    net.nodes.append(helper.make_node("Identity", [x], ["last_hidden_state"]))
    first = net.op("Gather", x, net.constant(np.int64(0)), axis=1)
    net.nodes.append(helper.make_node("Tanh", [linear(net, first, width, width)], ["pooler_output"]))
    names = ["input_ids", "attention_mask", "token_type_ids"]
    ids = net.rng.integers(0, vocabulary, (2, 7))
    mask = np.ones((2, 7), np.int64)
    mask[1, 4:] = 0
    arrays = dict(zip(names, [ids, mask, net.rng.integers(0, 2, (2, 7))]))
    outputs = [value("last_hidden_state", ["n", "s", width]), value("pooler_output", ["n", width])]
    return net.model([value(name, ["n", "s"], INT64) for name in names], outputs), arrays


def unsqueeze(net, x, axis):
    if net.opset >= 13:
        return net.op("Unsqueeze", x, net.ints(axis))
    return net.op("Unsqueeze", x, axes=[axis])


def linear(net, x, size_in, size_out):
    return net.op("Add", net.op("MatMul", x, net.weight(size_in, size_out, scale=size_in ** -0.5)), net.weight(size_out))


def layer_norm(net, x, width):
    scale, bias = net.weight(width, scale=1.0), net.weight(width)
    if net.opset >= 17:
        return net.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-12)
    axes = dict(axes=[-1])
    centred = net.op("Sub", x, net.op("ReduceMean", x, **axes))
    variance = net.op("ReduceMean", net.op("Pow", centred, net.constant(np.float32(2))), **axes)
    deviation = net.op("Sqrt", net.op("Add", variance, net.constant(np.float32(1e-12))))
    return net.op("Add", net.op("Mul", net.op("Div", centred, deviation), scale), bias)


def gelu(net, x):
    if net.opset >= 20:
        return net.op("Gelu", x)
    inner = net.op("Erf", net.op("Div", x, net.constant(np.float32(2 ** 0.5))))
    half = net.op("Mul", x, net.op("Add", inner, net.constant(np.float32(1))))
    return net.op("Mul", half, net.constant(np.float32(0.5)))


def attention(net, x, mask, width, heads):
    size = width // heads

    def split(order):
        y = net.op("Reshape", linear(net, x, width, width), net.ints(0, 0, heads, size))
        return net.op("Transpose", y, perm=order)

    scores = net.op("MatMul", split([0, 2, 1, 3]), split([0, 2, 3, 1]))
    scores = net.op("Div", scores, net.constant(np.float32(size ** 0.5)))
    weights = net.op("Softmax", net.op("Add", scores, mask), axis=3)
    y = net.op("Transpose", net.op("MatMul", weights, split([0, 2, 1, 3])), perm=[0, 2, 1, 3])
    return linear(net, net.op("Reshape", y, net.ints(0, 0, width)), width, width)


X = np.arange(6, dtype=np.float32).reshape(2, 3) - 2


def function(name, inputs, outputs, nodes, opset=17, **kwargs):
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, inputs, outputs, nodes, imports, **kwargs)


def referring(node, name, kind, reference):
    """Gives a node the attribute `name`, whose value is the caller's `reference`."""
    attribute = node.attribute.add()
    attribute.name, attribute.type, attribute.ref_attr_name = name, kind, reference
    return node


def with_functions(nodes, functions, outputs=("y",)):
    graph = helper.make_graph(nodes, "graph", [value("x", ["n", 3])], [value(name, None) for name in outputs])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, functions=functions, opset_imports=imports, ir_version=8)


def function_nested():
    """A function that calls another, passes an attribute on and leaves out an input; one attribute has a default."""
    inner = function("Leak", ["a", "extra"], ["b"], [
        referring(helper.make_node("LeakyRelu", ["a"], ["t"]), "alpha", onnx.AttributeProto.FLOAT, "slope"),
        referring(helper.make_node("Constant", [], ["c"]), "value_float", onnx.AttributeProto.FLOAT, "shift"),
        helper.make_node("Add", ["t", "c"], ["b"])], attributes=["slope"],
        attribute_protos=[helper.make_attribute("shift", 0.5)])
    outer = function("Twice", ["a"], ["b"], [
        referring(helper.make_node("Leak", ["a"], ["t"], domain="local"), "slope", onnx.AttributeProto.FLOAT, "steep"),
        helper.make_node("Leak", ["t", ""], ["b"], domain="local", slope=0.25, shift=2.0)], attributes=["steep"])
    call = helper.make_node("Twice", ["x"], ["y"], domain="local", steep=0.1)
    return with_functions([call], [inner, outer]), {"x": X}


def function_in_branch():
    """A function with a subgraph that reads the function's own values and attributes."""
    condition = helper.make_node("Greater", ["sum", "zero"], ["is_positive"])
    branches = {}
    for key, kind in (("then_branch", "Elu"), ("else_branch", "LeakyRelu")):
        node = referring(helper.make_node(kind, ["a"], [f"{key}_y"]), "alpha", onnx.AttributeProto.FLOAT, "alpha")
        branches[key] = helper.make_graph([node], key, [], [value(f"{key}_y", None)])
    body = [
        helper.make_node("ReduceSum", ["a"], ["sum"], keepdims=0),
        helper.make_node("Constant", [], ["zero"], value_float=0.0),
        condition,
        helper.make_node("If", ["is_positive"], ["b"], **branches),
    ]
    choose = function("Choose", ["a"], ["b"], body, attributes=["alpha"])
    calls = [
        helper.make_node("Choose", ["x"], ["y"], domain="local", alpha=0.3),
        helper.make_node("Neg", ["x"], ["minus"]),
        helper.make_node("Choose", ["minus"], ["z"], domain="local", alpha=0.7),
    ]
    return with_functions(calls, [choose], ("y", "z")), {"x": X}


def two_opset_imports():
    """Of two operator sets for one domain, onnxruntime takes the last."""
    graph = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["y"])], "graph", [value("x", ["n", 2, 3])], [value("y", None)])
    imports = [helper.make_opsetid("", 13), helper.make_opsetid("ai.onnx", 11)]
    model = finish(graph, 11, opset_imports=imports)
    return model, {"x": np.arange(12, dtype=np.float32).reshape(2, 2, 3)}


def if_captures():
    then = helper.make_graph([helper.make_node("Mul", ["doubled", "x"], ["t"])], "then", [], [value("t", None)])
    inner = helper.make_graph([helper.make_node("Abs", ["x"], ["i"])], "inner", [], [value("i", None)])
    other = helper.make_graph([helper.make_node("Identity", ["doubled"], ["o"])], "other", [], [value("o", None)])
    nested = [
        helper.make_node("ReduceMin", ["x"], ["low"], keepdims=0),
        helper.make_node("Less", ["low", "limit"], ["is_low"]),
        helper.make_node("If", ["is_low"], ["e"], then_branch=inner, else_branch=other),
    ]
    otherwise = helper.make_graph(nested, "else", [], [value("e", None)], [
        helper.make_tensor("limit", FLOAT, [], [-1.0])])
    nodes = [
        helper.make_node("Add", ["x", "x"], ["doubled"]),
        helper.make_node("ReduceMax", ["x"], ["high"], keepdims=0),
        helper.make_node("Greater", ["high", "threshold"], ["is_high"]),
        helper.make_node("If", ["is_high"], ["y"], then_branch=then, else_branch=otherwise),
    ]
    graph = helper.make_graph(nodes, "graph", [value("x", ["n", 3])], [value("y", None)], [
        helper.make_tensor("threshold", FLOAT, [], [10.0])])
    return finish(graph, 17), {"x": X}


def loop_captures():
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", "x"], ["next"]),
            helper.make_node("ReduceSum", ["next"], ["total"], keepdims=0),
            helper.make_node("Less", ["total", "limit"], ["again"]),
        ],
        "body", [value("i", [], INT64), value("go", [], TensorProto.BOOL), value("state", None)],
        [value("again", [], TensorProto.BOOL), value("next", None), value("total", None)])
    nodes = [helper.make_node("Loop", ["count", "", "start"], ["last", "totals"], body=body)]
    graph = helper.make_graph(
        nodes, "graph", [value("x", [2, 3])], [value("last", None), value("totals", None)], [
            helper.make_tensor("count", INT64, [], [10]), helper.make_tensor("limit", FLOAT, [], [12.0]),
            helper.make_tensor("start", FLOAT, [2, 3], [0.5] * 6)])
    return finish(graph, 17), {"x": X}


def scan_captures():
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["row", "factor"], ["scaled"]),
            helper.make_node("Add", ["sum", "scaled"], ["next"]),
            helper.make_node("Identity", ["next"], ["prefix"]),
        ],
        "body", [value("sum", [3]), value("row", [3])], [value("next", [3]), value("prefix", [3])])
    nodes = [helper.make_node("Scan", ["start", "x"], ["last", "prefixes"], body=body, num_scan_inputs=1)]
    graph = helper.make_graph(
        nodes, "graph", [value("x", ["n", 3])], [value("last", None), value("prefixes", None)], [
            helper.make_tensor("factor", FLOAT, [3], [1, 2, 3]), helper.make_tensor("start", FLOAT, [3], [0, 0, 0])])
    return finish(graph, 17), {"x": X}


def initializer_as_input():
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"])]
    weights = [helper.make_tensor("w", FLOAT, [3, 2], [1, 2, 3, 4, 5, 6]), helper.make_tensor("b", FLOAT, [2], [1, -1])]
    inputs = [value("x", ["n", 3]), value("w", [3, 2]), value("b", [2])]
    return finish(helper.make_graph(nodes, "graph", inputs, [value("y", ["n", 2])], weights), 8), {"x": X}


def wrong_declared_shape():
    """The declared output has another rank than what the graph computes."""
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)], "graph", [value("x", ["n", 3])],
        [value("y", ["n"])])
    return finish(graph, 17), {"x": X}


def mixed_output_types():
    nodes = [
        helper.make_node("TopK", ["x", "k"], ["best", "index"]),
        helper.make_node("Greater", ["x", "zero"], ["positive"]),
        helper.make_node("Cast", ["x"], ["text"], to=TensorProto.STRING),
        helper.make_node("Cast", ["x"], ["double"], to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["x"], ["small"], to=TensorProto.INT8),
    ]
    kinds = dict(best=FLOAT, index=INT64, positive=TensorProto.BOOL, double=TensorProto.DOUBLE, small=TensorProto.INT8)
    outputs = [value(name, None, kind) for name, kind in kinds.items()] + [value("text", None, TensorProto.STRING)]
    graph = helper.make_graph(nodes, "graph", [value("x", ["n", 3])], outputs, [
        helper.make_tensor("k", INT64, [1], [2]), helper.make_tensor("zero", FLOAT, [], [0])])
    return finish(graph, 17), {"x": X}


def constant_kinds():
    nodes = [
        helper.make_node("Constant", [], ["a"], value_float=1.5),
        helper.make_node("Constant", [], ["b"], value_floats=[1.0, 2.0, 3.0]),
        helper.make_node("Constant", [], ["c"], value_int=1),
        helper.make_node("Constant", [], ["d"], value_ints=[0, 1]),
        helper.make_node("Constant", [], ["e"], value=numpy_helper.from_array(np.float32([[1], [2]]))),
        helper.make_node("Constant", [], ["words"], value_strings=["mortise", "tenon"]),
        helper.make_node("Add", ["x", "a"], ["xa"]),
        helper.make_node("Mul", ["xa", "b"], ["xb"]),
        helper.make_node("Add", ["xb", "e"], ["y"]),
        helper.make_node("Gather", ["words", "d"], ["texts"]),
        helper.make_node("Gather", ["words", "c"], ["word"]),
    ]
    outputs = [value("y", None), value("texts", None, TensorProto.STRING), value("word", None, TensorProto.STRING)]
    return finish(helper.make_graph(nodes, "graph", [value("x", [2, 3])], outputs), 17), {"x": X}


def packed_initializers():
    """Every field that a tensor's elements can lie in."""
    kinds = {
        "f32": (FLOAT, [1.5, 2.5, -3.5]), "f64": (TensorProto.DOUBLE, [1.5, 2.5, -3.5]),
        "i32": (TensorProto.INT32, [1, -2, 3]), "i64": (INT64, [1, -2, 3]), "i8": (TensorProto.INT8, [1, -2, 3]),
        "u8": (TensorProto.UINT8, [1, 2, 255]), "u16": (TensorProto.UINT16, [1, 2, 65535]),
        "u32": (TensorProto.UINT32, [1, 2, 3]), "u64": (TensorProto.UINT64, [1, 2, 3]),
        "f16": (TensorProto.FLOAT16, [1.5, 2.5, -3.5]), "b": (TensorProto.BOOL, [1, 0, 1]),
    }
    weights = [helper.make_tensor(name, kind, [3], values) for name, (kind, values) in kinds.items()]
    nodes, total = [], "x"
    for name in kinds:
        nodes.append(helper.make_node("Cast", [name], [f"{name}_f"], to=FLOAT))
        nodes.append(helper.make_node("Add", [total, f"{name}_f"], [f"{name}_sum"]))
        total = f"{name}_sum"
    graph = helper.make_graph(nodes, "graph", [value("x", ["n", 3])], [value(total, None)], weights)
    return finish(graph, 17), {"x": X}
