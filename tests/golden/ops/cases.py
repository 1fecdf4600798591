"""What the generators share: a case is a small graph with inputs, run through
onnxruntime (or ONNX's reference, where it has no such operator), as one JSON
object a line.

Inputs and constants are {t: dtype, s: shape, d: data}, then come the nodes in
order and the expected outputs, or "error": true where onnxruntime refuses the
inputs.
"""

import json
import math
import pathlib

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

rng = np.random.default_rng(7)
ML = "ai.onnx.ml"
MS = "com.microsoft"
NAN = float("nan")
lines = []
skipped = []

DTYPES = {
    "float32": "f32", "float64": "f64", "int64": "i64", "int32": "i32", "int16": "i16",
    "int8": "i8", "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64",
    "bool": "bool", "object": "str", "float16": "f16",
}


def plain(value):
    value = float(value)
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def number(value, exact):
    """A float in as few digits as say it, or as a tolerance needs."""
    if value.dtype != np.float32:
        return plain(value)
    return plain(value.astype(str) if exact else f"{value:.7g}")


def tensor_json(array, exact=True):
    array = np.asarray(array)
    if array.dtype.kind in "UO":
        return {"t": "str", "s": list(array.shape), "d": [str(x) for x in array.ravel()]}
    kind = array.dtype.kind
    if kind == "f":
        data = [number(x, exact) for x in array.ravel()]
    else:
        data = [int(x) for x in array.ravel()]
    return {"t": DTYPES[array.dtype.name], "s": list(array.shape), "d": data}


def onnx_dtype(array):
    if array.dtype.kind in "UO":
        return TensorProto.STRING
    return helper.np_dtype_to_tensor_dtype(array.dtype)


def attribute_json(attribute):
    kind = attribute.type
    value = helper.get_attribute_value(attribute)
    text = lambda b: b.decode() if isinstance(b, bytes) else b
    A = onnx.AttributeProto
    if kind == A.INT:
        return {"i": value}
    if kind == A.FLOAT:
        return {"f": plain(np.float32(value).astype(str))}
    if kind == A.STRING:
        return {"str": text(value)}
    if kind == A.INTS:
        return {"is": list(value)}
    if kind == A.FLOATS:
        return {"fs": [plain(np.float32(x).astype(str)) for x in value]}
    if kind == A.STRINGS:
        return {"ss": [text(x) for x in value]}
    if kind == A.TENSOR:
        array = numpy_helper.to_array(value)
        if value.data_type == TensorProto.STRING:
            array = np.array([text(x) for x in array.ravel()], object).reshape(array.shape)
        return {"t": tensor_json(array)}
    if kind == A.GRAPH:
        return {"g": graph_json(value)}
    raise TypeError(kind)


def graph_json(graph):
    return {
        "in": [x.name for x in graph.input],
        "const": {t.name: tensor_json(numpy_helper.to_array(t)) for t in graph.initializer},
        "nodes": [node_json(n) for n in graph.node],
        "out": [x.name for x in graph.output],
    }


OPSETS = {}


def node_json(node):
    return {
        "op": node.op_type, "domain": node.domain, "opset": OPSETS[node.domain],
        "in": list(node.input), "out": list(node.output),
        "attr": {a.name: attribute_json(a) for a in node.attribute},
    }


def answer(model, inputs, reference):
    if reference:
        return ReferenceEvaluator(model).run(None, inputs)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options)
    feed = {k: (v.astype(object) if v.dtype.kind == "U" else v) for k, v in inputs.items()}
    return session.run(None, feed)


def graph_case(name, nodes, inputs, outputs, opsets, consts=None, tol=1e-5, error=False,
               reference=False):
    consts = consts or {}
    inputs = {k: np.asarray(v) for k, v in inputs.items()}
    consts = {k: np.asarray(v) for k, v in consts.items()}
    full = {"": 18, ML: 3, MS: 1, **opsets}
    OPSETS.clear()
    OPSETS.update(full)
    as_tensor = lambda k, v: (
        helper.make_tensor(k, TensorProto.STRING, v.shape, [s.encode() for s in v.ravel()])
        if v.dtype.kind in "UO" else numpy_helper.from_array(v, k))
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(k, onnx_dtype(v), [None] * v.ndim) for k, v in inputs.items()],
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [as_tensor(k, v) for k, v in consts.items()])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(d, v) for d, v in full.items()], ir_version=10)
    line = {
        "name": name, "tol": tol,
        "in": {k: tensor_json(v) for k, v in inputs.items()},
        "const": {k: tensor_json(v) for k, v in consts.items()},
        "nodes": [node_json(n) for n in nodes],
    }
    try:
        got = answer(model, inputs, reference)
    except Exception as exception:
        if not error:
            skipped.append(f"{name}: {str(exception)[-200:]}")
            return
        line["error"] = True
        line["out"] = [{"name": o} for o in outputs]
        lines.append(json.dumps(line, separators=(",", ":")))
        return
    line["out"] = [{"name": o, **tensor_json(g, exact=False)} for o, g in zip(outputs, got)]
    lines.append(json.dumps(line, separators=(",", ":")))


def case(op, inputs, outputs=1, opset=None, domain="", const=(), name=None, tol=1e-5,
         error=False, reference=False, **attributes):
    """One node; `const` are the positions of inputs that are constants and
    None stands for an input that is left out."""
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], domain=domain, **attributes)
    given = {f"x{i}": x for i, x in enumerate(inputs) if x is not None and i not in const}
    consts = {f"x{i}": inputs[i] for i in const}
    opsets = {} if opset is None else {domain: opset}
    graph_case(name or f"{op}-{len(lines)}", [node], given, [f"y{i}" for i in range(outputs)],
               opsets, consts, tol, error, reference)


def f32(*shape):
    return rng.normal(size=shape).astype(np.float32).round(3)


def ints(low, high, *shape):
    return rng.integers(low, high, size=shape).astype(np.int64)


def strings(words, *shape):
    return rng.choice(np.array(words, object), size=shape)


def of(dtype, *shape):
    if dtype == "str":
        return strings(["a", "bb", "", "ccc", "ü"], *shape)
    if dtype == "bool":
        return rng.integers(0, 2, size=shape).astype(bool)
    if dtype.startswith("f"):
        return f32(*shape).astype(dtype)
    return rng.integers(-9 if dtype.startswith("i") else 0, 10, size=shape).astype(dtype)


# A file of cases stays below this, so that no single file is large.
MAX_FILE_BYTES = 350_000


def write(generator, groups):
    """Runs the groups of cases and writes them beside the generator, in
    numbered files."""
    for group in groups:
        group()
    here = pathlib.Path(generator)
    family = here.stem.removeprefix("gen_")
    for old in here.parent.glob(f"{family}-*.jsonl"):
        old.unlink()
    files, size = [[]], 0
    for line in lines:
        if size + len(line) > MAX_FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append(line)
        size += len(line) + 1
    for index, part in enumerate(files):
        here.with_name(f"{family}-{index}.jsonl").write_text("\n".join(part) + "\n")
    print(f"{len(lines)} cases in {len(files)} files")
    for line in skipped:
        print("skipped", line)
