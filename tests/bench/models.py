"""Models with random weights for `bench models` and `bench quantize`, and onnxruntime's side of it.

    models.py make FOLDER            writes the models, their inputs and `manifest.json`
    models.py serve FOLDER THREADS   times onnxruntime: reads "case rounds" lines, answers in JSON
"""

import json
import pathlib
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]


def make(folder):
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    sys.path.insert(0, str(ROOT / "tests/models"))
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    cases = []

    def case(name, file, batch, dtype, arrays):
        inputs = []
        for key, array in arrays.items():
            data = f"{name}-{batch}-{key}.bin"
            (folder / data).write_bytes(np.ascontiguousarray(array).tobytes())
            inputs.append({"name": key, "dtype": str(array.dtype), "shape": list(array.shape), "file": data})
        cases.append({"name": name, "file": file, "batch": batch, "dtype": dtype, "inputs": inputs})

    onnx.save(bert(), folder / "bert.onnx")
    quantize_dynamic(folder / "bert.onnx", folder / "bert-int8.onnx", weight_type=QuantType.QInt8)
    ids = {
        "input_ids": rng.integers(0, 30522, (1, 128)),
        "attention_mask": np.ones((1, 128), np.int64),
        "token_type_ids": np.zeros((1, 128), np.int64),
    }
    case("bert-base", "bert.onnx", 1, "f32", ids)
    case("bert-base-dynamic", "bert-int8.onnx", 1, "int8", ids)
    onnx.save(resnet50(), folder / "resnet50.onnx")
    case("resnet-50", "resnet50.onnx", 1, "f32", {"image": rng.standard_normal((1, 3, 224, 224)).astype(np.float32)})
    onnx.save(wide_mlp(), folder / "mlp-1024.onnx")
    case("mlp-1024", "mlp-1024.onnx", 32, "f32", {"x": rng.standard_normal((32, 1024)).astype(np.float32)})
    (folder / "digits.onnx").write_bytes((ROOT / "plugins/demo/digits/model.onnx").read_bytes())
    for batch in (1, 32, 1024):
        pixels = rng.integers(0, 17, (batch, 64)).astype(np.float32)
        case("digits", "digits.onnx", batch, "f32", {"pixels": pixels})
    (folder / "trees.onnx").write_bytes(trees())
    for batch in (1, 1024):
        case("xgboost-500x6", "trees.onnx", batch, "f32", {"x": rng.standard_normal((batch, 50)).astype(np.float32)})
    (folder / "manifest.json").write_text(json.dumps(cases, indent=1))


def bert(layers=12, width=768, heads=12, vocabulary=30522):
    """BERT-base as PyTorch exports it: biases by Add, GELU by Erf, sizes read from the input."""
    from graphs import INT64, Net, gelu, linear, unsqueeze, value
    from onnx import TensorProto, helper

    net = Net(17, seed=1)

    def norm(x):
        return net.op("LayerNormalization", x, net.constant(np.ones(width, np.float32)), net.weight(width), axis=-1, epsilon=1e-12)

    def split(x, order):
        rows = net.op("Reshape", linear(net, x, width, width), net.ints(0, 0, heads, width // heads))
        return net.op("Transpose", rows, perm=order)

    def attention(x, mask):
        q, k, v = split(x, [0, 2, 1, 3]), split(x, [0, 2, 3, 1]), split(x, [0, 2, 1, 3])
        scores = net.op("Div", net.op("MatMul", q, k), net.constant(np.float32((width // heads) ** 0.5)))
        weights = net.op("Softmax", net.op("Add", scores, mask), axis=-1)
        y = net.op("Transpose", net.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        return linear(net, net.op("Reshape", y, net.ints(0, 0, width)), width, width)

    x = net.op("Gather", net.weight(vocabulary, width, scale=0.05), "input_ids")
    segments = net.op("Gather", net.weight(2, width, scale=0.05), "token_type_ids")
    length = net.op("Gather", net.op("Shape", "input_ids"), net.constant(np.int64(1)), axis=0)
    positions = net.op("Range", net.constant(np.int64(0)), length, net.constant(np.int64(1)))
    x = net.op("Add", net.op("Add", x, segments), net.op("Gather", net.weight(512, width, scale=0.05), positions))
    x = norm(x)
    mask = net.op("Cast", unsqueeze(net, unsqueeze(net, "attention_mask", 1), 2), to=TensorProto.FLOAT)
    mask = net.op("Mul", net.op("Sub", net.constant(np.float32(1)), mask), net.constant(np.float32(-10000)))
    for _ in range(layers):
        x = norm(net.op("Add", attention(x, mask), x))
        hidden = gelu(net, linear(net, x, width, 4 * width))
        x = norm(net.op("Add", linear(net, hidden, 4 * width, width), x))
    net.nodes.append(helper.make_node("Identity", [x], ["last_hidden_state"]))
    names = ["input_ids", "attention_mask", "token_type_ids"]
    return net.model([value(name, ["n", "s"], INT64) for name in names], [value("last_hidden_state", ["n", "s", width])])


def resnet50():
    """The 1.5 variant: strides are in the 3x3 convolutions."""
    from graphs import Net, conv_norm, value
    from onnx import helper

    net = Net(17, seed=2)

    def block(x, channels_in, channels, stride):
        y = net.op("Relu", conv_norm(net, x, channels_in, channels, 1, 1))
        y = net.op("Relu", conv_norm(net, y, channels, channels, 3, stride))
        y = conv_norm(net, y, channels, 4 * channels, 1, 1)
        if stride != 1 or channels_in != 4 * channels:
            x = conv_norm(net, x, channels_in, 4 * channels, 1, stride)
        return net.op("Relu", net.op("Add", y, x))

    x = net.op("Relu", conv_norm(net, "image", 3, 64, 7, 2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels_in = 64
    for channels, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(count):
            x = block(x, channels_in, channels, stride if index == 0 else 1)
            channels_in = 4 * channels
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    net.nodes.append(helper.make_node("Gemm", [x, net.weight(1000, 2048), net.weight(1000)], ["logits"], transB=1))
    return net.model([value("image", ["n", 3, 224, 224])], [value("logits", ["n", 1000])])


def wide_mlp(width=1024, layers=4):
    from graphs import Net, value
    from onnx import helper

    net = Net(17, seed=3)
    x = "x"
    for _ in range(layers):
        x = net.op("Relu", net.op("Gemm", x, net.weight(width, width), net.weight(width), transB=1))
    net.nodes.append(helper.make_node("Gemm", [x, net.weight(16, width), net.weight(16)], ["y"], transB=1))
    return net.model([value("x", ["n", width])], [value("y", ["n", 16])])


def trees(count=500, depth=6, columns=50):
    import xgboost
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    rng = np.random.default_rng(4)
    features = rng.standard_normal((8000, columns)).astype(np.float32)
    labels = (features[:, :8].sum(1) + rng.standard_normal(8000) > 0).astype(int)
    model = xgboost.XGBClassifier(n_estimators=count, max_depth=depth, min_child_weight=0, reg_lambda=0.1, n_jobs=1)
    model.fit(features, labels)
    converted = convert_xgboost(model, initial_types=[("x", FloatTensorType([None, columns]))], target_opset=15)
    return converted.SerializeToString()


def serve(folder, threads):
    import onnxruntime

    cases = json.loads((folder / "manifest.json").read_text())
    sessions, feeds, kept = {}, {}, {}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    print(json.dumps({"onnxruntime": onnxruntime.__version__}), flush=True)
    for line in sys.stdin:
        index, rounds = map(int, line.split())
        case = cases[index]
        if case["file"] not in sessions:
            providers = ["CPUExecutionProvider"]
            sessions[case["file"]] = onnxruntime.InferenceSession(str(folder / case["file"]), options, providers=providers)
        session = sessions[case["file"]]
        if index not in feeds:
            feeds[index] = {i["name"]: read(folder, i) for i in case["inputs"]}
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            outputs = session.run(None, feeds[index])
            seconds.append(time.perf_counter() - start)
        if index not in kept:
            kept[index] = [save(folder, index, position, array) for position, array in enumerate(outputs)]
        print(json.dumps({"seconds": seconds, "outputs": kept[index]}), flush=True)


def read(folder, entry):
    data = np.frombuffer((folder / entry["file"]).read_bytes(), entry["dtype"])
    return data.reshape(entry["shape"]).copy()


def save(folder, index, position, array):
    """Numbers go to a file as float64; `null` for what has no numbers (a ZipMap)."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        return None
    name = f"answer-{index}-{position}.bin"
    (folder / name).write_bytes(array.astype(np.float64).tobytes())
    return name


if __name__ == "__main__":
    command, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    make(folder) if command == "make" else serve(folder, int(sys.argv[3]))
