#!/usr/bin/env python3
"""Writes nn-*.jsonl: the operators of networks with random inputs, and what
onnxruntime answers. `runtime/compute/tests` replays them.

Needs numpy, onnx and onnxruntime:

    python tests/golden/ops/gen_nn.py
"""

import numpy as np
from onnx import TensorProto, helper

from cases import MS, NAN, case, f32, graph_case, ints, of, rng, write

INF = float("inf")
FLOATS = ("float32", "float64", "float16")
NUMBERS = ("float32", "float64", "int32", "int64", "uint8")
EDGES = np.array([NAN, INF, -INF, 0.0, -0.0, 1e-30, 90.0, -90.0, 0.5, 1.5, 2.5, -2.5], np.float32)


# ---- one operand ----

def unary():
    wide = np.concatenate([EDGES, f32(21) * 3])
    everywhere = (
        "Abs Neg Sign Ceil Floor Round Exp Erf Relu Sigmoid Tanh Softplus Softsign Sin Cos "
        "Tan Atan Sinh Cosh Asinh Reciprocal IsNaN IsInf").split()
    since = {"Round": 11, "IsInf": 10}
    for op in everywhere:
        case(op, [wide], name=f"{op}-edges", tol=2e-6)
        for dtype in ("float64", "float16"):
            if not (op in ("Round", "Erf") and dtype == "float16"):
                case(op, [of(dtype, 3, 5)], tol=2e-3 if dtype == "float16" else 1e-12,
                     opset=20 if op == "IsInf" else None)
    positive = np.concatenate([[0, INF, NAN], abs(f32(9))]).astype(np.float32)
    unit = np.clip(f32(9), -1, 1)
    for op, x in (("Sqrt", positive), ("Log", positive), ("Acos", unit), ("Asin", unit),
                  ("Atanh", unit * np.float32(0.9)), ("Acosh", positive + 1)):
        case(op, [x], tol=2e-6)
        case(op, [x.astype(np.float64)], tol=1e-12)
    for op in ("Abs", "Neg", "Sign"):
        for dtype in ("int8", "int32", "int64"):
            case(op, [of(dtype, 7)])
    case("Relu", [of("int32", 7)], opset=14)
    for alpha in (0.1, 1.0, 2.5):
        case("LeakyRelu", [wide], alpha=alpha, tol=2e-6)
        case("Elu", [wide], alpha=alpha, tol=2e-6)
        case("ThresholdedRelu", [wide[3:]], alpha=alpha)
        case("Celu", [wide[3:]], alpha=alpha, tol=2e-6)
    case("Selu", [wide], tol=2e-6)
    case("HardSigmoid", [wide], alpha=0.3, beta=0.4)
    case("HardSwish", [wide[3:]], tol=2e-6)
    case("Mish", [wide[3:]], tol=2e-6)
    case("Shrink", [wide[3:]], lambd=0.7, bias=0.2)
    case("Gelu", [wide[3:]], opset=20, tol=2e-6)
    case("Gelu", [wide[3:]], opset=20, approximate="tanh", tol=2e-6)
    case("Gelu", [f32(4, 5)], domain=MS, tol=2e-6)
    case("QuickGelu", [f32(4, 5)], domain=MS, alpha=1.702, tol=2e-6)
    case("FastGelu", [f32(4, 5)], domain=MS, tol=2e-5)
    case("FastGelu", [f32(4, 5), f32(5)], domain=MS, tol=2e-5)
    case("BiasGelu", [f32(4, 5), f32(5)], domain=MS, tol=2e-6)
    case("IsInf", [EDGES], detect_negative=0)
    case("Not", [of("bool", 5)])
    for dtype in ("int32", "uint8"):
        case("BitwiseNot", [of(dtype, 5)])
    for size in (0, 1, 15, 16, 17, 33):
        case("Tanh", [f32(size)], tol=2e-6)


# ---- two operands and more ----

BROADCASTS = [((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 4), (3, 1)), ((2, 1, 4), (1, 3, 1)), ((), (2, 3)),
              ((5,), ()), ((0, 3), (3,)), ((2, 3, 4), (3, 1)), ((1,), (1, 1)), ((4, 1, 1, 3), (2, 5, 1))]


def binary():
    for op in ("Add", "Sub", "Mul", "Div"):
        for a, b in BROADCASTS:
            case(op, [f32(*a), f32(*b) + np.float32(3)])
        for dtype in ("float64", "int32", "int64", "float16"):
            b = of(dtype, 4)
            b[b == 0] = 1
            case(op, [of(dtype, 3, 4), b], tol=2e-3 if dtype == "float16" else 1e-12)
    case("Div", [np.array([-7, 7, -7, 7], np.int64), np.array([2, 2, -2, -2], np.int64)])
    case("Div", [EDGES, EDGES[::-1].copy()])
    for dtype in ("int32", "int64", "int8", "uint8"):
        divisor = of(dtype, 3, 4)
        divisor[divisor == 0] = 2
        case("Mod", [of(dtype, 3, 4), divisor])
        case("Mod", [of(dtype, 3, 4), divisor], fmod=1)
    case("Mod", [f32(9) * 5, np.full(9, 1.5, np.float32)], fmod=1)
    for exponent in (2.0, 3.0, 0.5, -1.0, 0.0, 1.0):
        case("Pow", [abs(f32(3, 4)) + np.float32(0.1), np.array(exponent, np.float32)])
    case("Pow", [f32(3, 4), np.array([2, 3, 0, 1], np.int64)], opset=15)
    case("Pow", [ints(-4, 5, 3, 4), ints(0, 4, 4)], opset=15)
    case("Pow", [ints(1, 5, 4), f32(4)], opset=15)
    case("Pow", [f32(2, 1), abs(f32(3)) + np.float32(1)], opset=15)
    for a, b in BROADCASTS[:4]:
        case("PRelu", [f32(*a), f32(*b)]) if len(b) <= len(a) else None
    for op in ("Max", "Min"):
        for dtype in NUMBERS:
            case(op, [of(dtype, 3, 4), of(dtype, 4), of(dtype, 3, 1)], opset=13)
        case(op, [f32(2, 3)])
        case(op, [np.array([NAN, 1, 2], np.float32), np.array([1, NAN, 1], np.float32)])
    for op in ("Sum", "Mean"):
        case(op, [f32(3, 4), f32(4), f32(3, 1)])
        case(op, [f32(3)])
    for op in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"):
        for dtype in ("float32", "float64", "int32", "int64"):
            case(op, [of(dtype, 3, 4), of(dtype, 3, 1)], opset=16)
        case(op, [EDGES, EDGES[::-1].copy()], opset=16)
    case("Equal", [of("bool", 4), of("bool", 4)])
    case("Equal", [of("str", 3, 4), of("str", 4)], opset=19)
    for op in ("And", "Or", "Xor"):
        case(op, [of("bool", 3, 4), of("bool", 4)])
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        for dtype in ("int32", "uint8", "int64"):
            case(op, [of(dtype, 3, 4), of(dtype, 4)])
    for direction in ("LEFT", "RIGHT"):
        case("BitShift", [of("uint8", 3, 4), np.array([0, 1, 3, 7], np.uint8)], direction=direction)
        case("BitShift", [of("uint64", 4), np.array([0, 1, 3, 60], np.uint64)], direction=direction)
    case("Add", [f32(2, 3), f32(2)], error=True)
    case("Add", [f32(2, 3), of("float64", 3)], error=True)


def choice():
    for dtype in ("float32", "int64", "uint8", "str", "float64"):
        case("Where", [of("bool", 3, 4), of(dtype, 3, 4), of(dtype, 4)])
        case("Where", [of("bool", 3, 1), of(dtype, 4), of(dtype)])
    case("Clip", [np.concatenate([EDGES, f32(9)]), np.float32(-1), np.float32(1)], const=(1, 2))
    case("Clip", [f32(9), np.float32(0)])
    case("Clip", [f32(9), None, np.float32(0.5)])
    case("Clip", [f32(9)])
    case("Clip", [f32(9), np.float32(1), np.float32(-1)])
    case("Clip", [f32(9)], opset=6, min=-0.5, max=0.5)
    for dtype in ("int64", "float64", "uint8", "int8"):
        case("Clip", [of(dtype, 9), np.array(1, dtype), np.array(5, dtype)])


def casts():
    kinds = ["float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16",
             "uint32", "uint64", "bool"]
    to = lambda dtype: helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for source in kinds:
        x = abs(of(source, 6)) if source.startswith("f") else of(source, 6)
        for target in kinds:
            case("Cast", [x], to=to(target), name=f"Cast-{source}-{target}", tol=1e-3)
        if source != "float16":
            case("Cast", [x], to=TensorProto.STRING, name=f"Cast-{source}-text")
    texts = np.array(["1", "-2.5", "3e2", "inf", "-inf", "nan", "0"], object)
    case("Cast", [texts], to=TensorProto.FLOAT)
    case("Cast", [texts], to=TensorProto.DOUBLE)
    case("Cast", [np.array(["1", "-25", "0"], object)], to=TensorProto.INT64)
    case("Cast", [np.array(["x"], object)], to=TensorProto.FLOAT, error=True)
    numbers = np.array([3.14, 1, 1e-5, 123456789, 0.1, NAN, INF, -INF, 1e20, 1234567, 0.00012345], np.float64)
    case("Cast", [numbers], to=TensorProto.STRING)
    case("Cast", [numbers.astype(np.float32)], to=TensorProto.STRING)
    case("Cast", [np.array([-3.7, 3.7, -0.5], np.float32)], to=TensorProto.INT32)
    case("CastLike", [f32(3) * 5, of("int64", 1)], opset=15)


# ---- reductions and softmax ----

def reductions():
    names = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split()
    for name in names:
        op = "Reduce" + name
        x = abs(f32(3, 2, 4)) + np.float32(0.1)
        for axes in (None, [0], [1], [2], [0, 2], [-1], [0, 1], [1, 2]):
            for keep in (0, 1):
                attributes = {} if axes is None else {"axes": axes}
                if name == "Sum":
                    extra = [] if axes is None else [np.array(axes, np.int64)]
                    case(op, [x, *extra], opset=13, const=range(1, 1 + len(extra)), keepdims=keep)
                else:
                    case(op, [x], opset=13, keepdims=keep, **attributes)
        case(op, [x, np.array([0, 2], np.int64)], opset=18, const=(1,))
        case(op, [x, np.array([1], np.int64)], opset=18)
        case(op, [x], opset=18, noop_with_empty_axes=1)
        case(op, [x.astype(np.float64)], opset=13, tol=1e-12)
        for dtype in ("int32", "int64"):
            if name not in ("LogSum", "LogSumExp", "L2"):
                case(op, [of(dtype, 3, 4)], opset=13, **({} if name == "Sum" else {"axes": [1]}))
        if name not in ("LogSum", "LogSumExp"):
            case(op, [f32(70)], opset=13, tol=1e-4)
    case("ReduceSum", [f32(2, 0, 3), np.array([1], np.int64)], opset=18)
    case("ReduceLogSumExp", [np.array([[1000, 1001], [-1000, -1001], [-INF, -INF]], np.float32)], opset=13, axes=[1])
    case("ReduceMax", [np.array([[1, INF], [-INF, 3]], np.float32)], opset=13, axes=[1])
    for dtype in ("uint8", "int8"):
        case("ReduceMax", [of(dtype, 3, 4)], opset=13, axes=[0])
        case("ReduceMin", [of(dtype, 3, 4)], opset=13, axes=[0])
    case("ReduceMax", [of("bool", 3, 4), np.array([1], np.int64)], opset=20)


def softmaxes():
    big = np.array([[1000, 1001, 999], [-1000, 0, 1000], [-INF, 0, 1]], np.float32)
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        for opset, axes in ((11, (0, 1, 2, -1)), (13, (0, 1, 2, -1))):
            for axis in axes:
                case(op, [f32(2, 3, 5)], opset=opset, axis=axis, tol=2e-6)
        case(op, [f32(2, 3, 5)], opset=11)
        case(op, [f32(2, 3, 5)], opset=13)
        case(op, [of("float64", 3, 5)], opset=13, tol=1e-12)
        case(op, [f32(0, 5)], opset=13)
        case(op, [f32(3, 1)], opset=13)
        case(op, [f32(2, 67)], opset=13, tol=2e-6)
    case("Softmax", [big], opset=13, tol=2e-6)
    case("LogSoftmax", [big[:2]], opset=13, tol=2e-6)


# ---- products ----

def products():
    shapes = [((2, 3), (3, 4)), ((3,), (3,)), ((3,), (3, 4)), ((2, 3), (3,)), ((5, 2, 3), (3, 4)),
              ((5, 2, 3), (5, 3, 4)), ((5, 1, 2, 3), (4, 3, 2)), ((1, 64), (64, 10)), ((7, 35), (35, 33)),
              ((3,), (2, 3, 4)), ((2, 2, 3), (3,)), ((0, 3), (3, 4)), ((2, 0), (0, 4)), ((1, 130), (130, 35))]
    for a, b in shapes:
        case("MatMul", [f32(*a), f32(*b)], tol=1e-4)
        case("MatMul", [f32(*a), f32(*b)], const=(1,), tol=1e-4)
    for dtype in ("float64", "int32", "int64", "uint32"):
        case("MatMul", [of(dtype, 2, 3, 4), of(dtype, 4, 5)], tol=1e-12)
    case("MatMul", [of("float16", 3, 4), of("float16", 4, 2)], tol=2e-2)
    case("MatMul", [f32(2, 3), f32(2, 3)], error=True)
    for ta in (0, 1):
        for tb in (0, 1):
            a, b = f32(*((5, 4) if ta else (4, 5))), f32(*((3, 5) if tb else (5, 3)))
            for c in (None, (), (3,), (4, 1), (1, 3), (4, 3)):
                inputs = [a, b] if c is None else [a, b, f32(*c)]
                case("Gemm", inputs, transA=ta, transB=tb, alpha=0.5, beta=2.0)
            case("Gemm", [a, b, f32(3)], transA=ta, transB=tb, const=(1, 2))
    case("Gemm", [f32(1, 64), f32(10, 64), f32(10)], transB=1, const=(1, 2), tol=1e-4)
    case("Gemm", [of("float64", 3, 4), of("float64", 4, 2), of("float64", 2)], tol=1e-12)
    case("Gemm", [f32(2, 3), f32(3, 4), f32(3)], error=True)
    equations = [("ij,jk->ik", (2, 3), (3, 4)), ("bij,bjk->bik", (2, 2, 3), (2, 3, 4)), ("ij->ji", (2, 3)),
                 ("ii->i", (3, 3)), ("ij->", (2, 3)), ("...ij,...jk->...ik", (2, 2, 3), (2, 3, 4)),
                 ("bhqd,bhkd->bhqk", (2, 2, 3, 4), (2, 2, 5, 4)), ("i,j->ij", (2,), (3,)), ("ij,ij", (2, 3), (2, 3)),
                 ("a,a,a->a", (3,), (3,), (3,))]
    for equation, *operands in equations:
        case("Einsum", [f32(*s) for s in operands], equation=equation, name=f"Einsum-{equation}")
    case("FusedMatMul", [f32(3, 2), f32(4, 3)], domain=MS, transA=1, transB=1, alpha=0.5)
    case("FusedMatMul", [f32(2, 4, 3), f32(2, 5, 3)], domain=MS, transB=1, alpha=0.125)
    case("FusedGemm", [f32(2, 3), f32(3, 4), f32(4)], domain=MS, activation="Relu")


# ---- patterns that are fused ----

def fusions():
    node = helper.make_node
    x, gamma, beta = f32(2, 3, 8), f32(8), f32(8)
    consts = {"two": np.float32(2), "eps": np.float32(1e-5), "gamma": gamma, "beta": beta}
    for power in ("Pow", "Mul"):
        square = node("Pow", ["d", "two"], ["s"]) if power == "Pow" else node("Mul", ["d", "d"], ["s"])
        nodes = [node("ReduceMean", ["x"], ["m"], axes=[-1]), node("Sub", ["x", "m"], ["d"]), square,
                 node("ReduceMean", ["s"], ["v"], axes=[-1]), node("Add", ["v", "eps"], ["ve"]),
                 node("Sqrt", ["ve"], ["sd"]), node("Div", ["d", "sd"], ["n"]), node("Mul", ["n", "gamma"], ["g"]),
                 node("Add", ["g", "beta"], ["y"])]
        graph_case(f"fused-layer-norm-{power}", nodes, {"x": x}, ["y"], {"": 13}, consts)
        graph_case(f"fused-layer-norm-shared-{power}", nodes, {"x": x}, ["y", "d"], {"": 13}, consts)
    scalars = {"r2": np.float32(2 ** 0.5), "one": np.float32(1), "half": np.float32(0.5)}
    erf = [node("Div", ["x", "r2"], ["q"]), node("Erf", ["q"], ["e"]), node("Add", ["e", "one"], ["p"])]
    graph_case("fused-gelu-last", erf + [node("Mul", ["x", "p"], ["h"]), node("Mul", ["h", "half"], ["y"])],
               {"x": x}, ["y"], {"": 13}, scalars, tol=2e-6)
    graph_case("fused-gelu-first", erf + [node("Mul", ["x", "half"], ["h"]), node("Mul", ["h", "p"], ["y"])],
               {"x": x}, ["y"], {"": 13}, scalars, tol=2e-6)
    graph_case("not-gelu", erf + [node("Mul", ["x", "p"], ["h"]), node("Mul", ["h", "one"], ["y"])],
               {"x": x}, ["y"], {"": 13}, scalars, tol=2e-6)
    weights = {"w": f32(8, 5), "b": f32(5)}
    product = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["b", "m"], ["a"])]
    graph_case("fused-bias", product, {"x": x}, ["a"], {}, weights)
    graph_case("fused-bias-shared", product, {"x": x}, ["a", "m"], {}, weights)
    for op in ("Relu", "Sigmoid", "Tanh"):
        graph_case(f"fused-{op}", product + [node(op, ["a"], ["y"])], {"x": x}, ["y"], {}, weights)
        gemm = [node("Gemm", ["x", "w", "b"], ["a"], alpha=0.5), node(op, ["a"], ["y"])]
        graph_case(f"fused-gemm-{op}", gemm, {"x": f32(3, 8)}, ["y"], {}, weights)


# ---- convolution, pooling, normalisation ----

def convolutions():
    def conv(x, w, bias=True, **attributes):
        inputs = [f32(*x), f32(*w)] + ([f32(w[0])] if bias else [])
        case("Conv", inputs, tol=1e-4, **attributes)
        case("Conv", inputs, tol=1e-4, const=range(1, len(inputs)), **attributes)

    conv((1, 1, 5, 5), (2, 1, 3, 3), pads=[1, 1, 1, 1])
    conv((2, 3, 7, 6), (4, 3, 3, 2), strides=[2, 1], pads=[0, 1, 2, 0])
    conv((1, 4, 6, 6), (6, 2, 3, 3), group=2)
    conv((1, 4, 6, 6), (4, 1, 3, 3), group=4, pads=[1, 1, 1, 1])
    conv((1, 4, 6, 6), (8, 1, 3, 3), False, group=4, strides=[2, 2])
    conv((2, 5, 4, 4), (3, 5, 1, 1))
    conv((1, 2, 9, 9), (3, 2, 3, 3), dilations=[2, 2])
    conv((2, 3, 11), (4, 3, 3), strides=[2])
    conv((1, 2, 4, 5, 6), (3, 2, 2, 3, 2), pads=[0, 1, 0, 1, 1, 0])
    for pad in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        conv((1, 2, 6, 7), (3, 2, 3, 2), auto_pad=pad, strides=[2, 2])
    case("Conv", [f32(1, 3, 5, 5), f32(2, 2, 3, 3)], error=True)
    case("Conv", [f32(0, 3, 5, 5), f32(2, 3, 3, 3)])
    for attributes in ({}, {"strides": [2, 2]}, {"strides": [2, 3], "pads": [1, 0, 1, 1]},
                       {"strides": [2, 2], "output_padding": [1, 1]}, {"dilations": [2, 1]},
                       {"strides": [2, 2], "output_shape": [9, 10]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}):
        case("ConvTranspose", [f32(1, 3, 4, 5), f32(3, 2, 3, 3), f32(2)], tol=1e-4, **attributes)
    case("ConvTranspose", [f32(1, 4, 4, 5), f32(4, 2, 3, 3)], group=2, tol=1e-4)
    case("ConvTranspose", [f32(2, 3, 6), f32(3, 2, 4)], strides=[3], tol=1e-4)


def pools():
    for op in ("MaxPool", "AveragePool"):
        for attributes in ({}, {"strides": [2, 2]}, {"pads": [1, 0, 1, 1]}, {"strides": [2, 2], "ceil_mode": 1},
                           {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"auto_pad": "SAME_LOWER"},
                           {"strides": [3, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}):
            case(op, [f32(2, 3, 6, 7)], kernel_shape=[3, 2], opset=12, **attributes)
        case(op, [f32(2, 3, 9)], kernel_shape=[3], opset=12)
        case(op, [f32(1, 2, 4, 5, 6)], kernel_shape=[2, 2, 3], opset=12)
    case("AveragePool", [f32(1, 2, 5, 5)], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1, opset=12)
    case("MaxPool", [f32(1, 2, 6, 6)], 2, kernel_shape=[2, 2], strides=[2, 2], opset=12)
    case("MaxPool", [f32(1, 2, 7, 7)], kernel_shape=[2, 2], dilations=[2, 2], opset=12)
    case("MaxPool", [of("int8", 1, 2, 5, 5)], kernel_shape=[2, 2], opset=12)
    case("LpPool", [f32(1, 2, 5, 5)], kernel_shape=[2, 2], p=2)
    for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
        case(op, [f32(2, 3, 4, 5)])
        case(op, [f32(2, 3, 4)])


def norms():
    c = 3
    for shape in ((2, c, 4, 5), (2, c), (2, c, 7)):
        case("BatchNormalization", [f32(*shape), f32(c), f32(c), f32(c), abs(f32(c)) + np.float32(0.1)],
             epsilon=1e-3, opset=15)
    case("InstanceNormalization", [f32(2, c, 4, 5), f32(c), f32(c)])
    for axis in (-1, 1, 2):
        x = f32(2, 3, 4)
        case("LayerNormalization", [x, f32(*x.shape[axis:]), f32(*x.shape[axis:])], axis=axis, opset=17)
        case("LayerNormalization", [x, f32(*x.shape[axis:])], axis=axis, opset=17)
    case("LayerNormalization", [f32(2, 97), f32(97), f32(97)], opset=17, epsilon=1e-12)
    case("LpNormalization", [f32(3, 4)], p=1, axis=0)
    case("LpNormalization", [f32(3, 4)], p=2)
    case("LRN", [f32(1, 7, 3, 3)], size=3, alpha=0.1, beta=0.75, bias=1.0)
    case("LRN", [f32(1, 6, 2, 2)], size=4)
    case("GroupNormalization", [f32(2, 4, 3, 3), f32(4), f32(4)], num_groups=2, opset=21)
    case("MeanVarianceNormalization", [f32(2, 3, 4, 4)])
    case("SkipLayerNormalization", [f32(2, 3, 8), f32(2, 3, 8), f32(8), f32(8), f32(8)], domain=MS)


def recurrent():
    size, hidden = 3, 4
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for direction in ("forward", "reverse", "bidirectional"):
            n = 2 if direction == "bidirectional" else 1
            x = f32(5, 2, size)
            w, r = f32(n, gates * hidden, size), f32(n, gates * hidden, hidden)
            bias = f32(n, 2 * gates * hidden)
            outputs = 3 if op == "LSTM" else 2
            case(op, [x, w, r, bias], outputs, hidden_size=hidden, direction=direction)
            lengths = np.array([5, 3], np.int32)
            state = [f32(n, 2, hidden)] * (2 if op == "LSTM" else 1)
            case(op, [x, w, r, bias, lengths, *state], outputs, hidden_size=hidden, direction=direction)
        case(op, [x, w[:1], r[:1]], outputs, hidden_size=hidden)
    case("GRU", [f32(5, 2, size), f32(1, 12, size), f32(1, 12, hidden), f32(1, 24)], 2, hidden_size=hidden,
         linear_before_reset=1)
    p = f32(1, 12)
    case("LSTM", [f32(5, 2, size), f32(1, 16, size), f32(1, 16, hidden), f32(1, 32), None, None, None, p], 3,
         hidden_size=hidden)


def attention():
    batch, length, heads, size = 2, 5, 2, 4
    width = heads * size
    x, w, b = f32(batch, length, width), f32(width, 3 * width), f32(3 * width)
    case("Attention", [x, w, b], domain=MS, num_heads=heads, tol=1e-4)
    case("Attention", [x, w, b, np.array([3, 5], np.int32)], domain=MS, num_heads=heads, tol=1e-4)
    mask = np.array([[1, 1, 1, 0, 0], [1] * 5], np.int32)
    case("Attention", [x, w, b, mask], domain=MS, num_heads=heads, tol=1e-4)
    case("Attention", [x, w, b], domain=MS, num_heads=heads, unidirectional=1, tol=1e-4)
    q, k, v = (f32(batch, n, width) for n in (4, 6, 6))
    case("MultiHeadAttention", [q, k, v], domain=MS, num_heads=heads, tol=1e-4)
    case("MultiHeadAttention", [q, k, v, b], domain=MS, num_heads=heads, tol=1e-4)
    words = np.array([[1, 2, 3], [3, 0, 1]], np.int32)
    case("EmbedLayerNormalization",
         [words, np.array([[0, 0, 1], [0, 1, 1]], np.int32), f32(6, 8), f32(4, 8), f32(2, 8), f32(8), f32(8),
          np.array([[1, 1, 0], [1, 1, 1]], np.int32)], 2, domain=MS, epsilon=1e-12)


if __name__ == "__main__":
    write(__file__, (unary, binary, choice, casts, reductions, softmaxes, products, fusions, convolutions,
                     pools, norms, recurrent, attention))
