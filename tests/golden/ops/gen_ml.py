#!/usr/bin/env python3
"""Writes ml-*.jsonl: single operators and small graphs with random inputs, and
what onnxruntime answers. `runtime/compute/tests/golden.rs` replays them.

Needs numpy, onnx and onnxruntime:

    python tests/golden/ops/gen_ml.py
"""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from cases import ML, MS, NAN, case, f32, graph_case, ints, of, rng, strings, write


# ---- linear models ----

def linear():
    x = np.vstack([f32(4, 3), [[NAN, 0, 1]]]).astype(np.float32)
    for transform in ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT"]:
        for k in (2, 3):
            case("LinearClassifier", [x], 2, domain=ML, coefficients=f32(k * 3).tolist(),
                 intercepts=f32(k).tolist(), classlabels_ints=[5, 7, 9][:k],
                 post_transform=transform, multi_class=1)
        case("LinearRegressor", [x], domain=ML, coefficients=f32(6).tolist(), targets=2,
             intercepts=f32(2).tolist(), post_transform=transform)
        case("LinearRegressor", [x], domain=ML, coefficients=f32(3).tolist(), targets=1,
             post_transform=transform)
        if transform != "PROBIT":
            case("LinearClassifier", [x], 2, domain=ML, coefficients=f32(3).tolist(),
                 intercepts=[0.1], classlabels_strings=["no", "yes"], post_transform=transform)
    for dtype in ("float64", "int64", "int32"):
        case("LinearClassifier", [(x[:4] * 3).astype(dtype)], 2, domain=ML,
             coefficients=f32(9).tolist(), intercepts=f32(3).tolist(),
             classlabels_strings=["a", "b", "c"], post_transform="SOFTMAX")
    case("LinearRegressor", [f32(9, 128)], domain=ML, coefficients=f32(30 * 128).tolist(),
         targets=30, intercepts=f32(30).tolist(), tol=1e-4)
    case("LinearRegressor", [f32(0, 3)], domain=ML, coefficients=f32(3).tolist(), targets=1)
    case("LinearRegressor", [f32(2, 4)], domain=ML, coefficients=f32(3).tolist(), targets=1, error=True)
    case("LinearClassifier", [f32(3)], 2, domain=ML, coefficients=f32(9).tolist(),
         intercepts=f32(3).tolist(), classlabels_ints=[1, 2, 3])


# ---- support vector machines ----

def svm():
    x = f32(5, 4)
    kernels = [("LINEAR", [0.0, 0, 0]), ("RBF", [0.4, 0, 0]), ("POLY", [0.3, 1, 3]), ("SIGMOID", [0.2, 0.5, 0])]
    for kernel, parameters in kernels:
        for counts in ([2, 3], [2, 1, 3], [1, 2, 2, 1]):
            k, n = len(counts), sum(counts)
            pairs = k * (k - 1) // 2
            common = dict(
                kernel_type=kernel, kernel_params=[float(p) for p in parameters],
                support_vectors=f32(n * 4).tolist(), vectors_per_class=counts,
                coefficients=f32(n * (k - 1)).tolist(), rho=f32(pairs).tolist(),
                classlabels_ints=list(range(10, 10 + k)))
            for proba in (False, True):
                extra = dict(prob_a=(-abs(f32(pairs)) - 0.3).tolist(), prob_b=f32(pairs).tolist()) if proba else {}
                transforms = ["NONE"] if kernel != "RBF" else ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"]
                for transform in transforms:
                    case("SVMClassifier", [x], 2, domain=ML, post_transform=transform, tol=1e-4,
                         **common, **extra)
        case("SVMRegressor", [x], domain=ML, kernel_type=kernel,
             kernel_params=[float(p) for p in parameters], support_vectors=f32(12).tolist(),
             coefficients=f32(3).tolist(), rho=[0.3], n_supports=3, tol=1e-4)
        case("SVMRegressor", [x], domain=ML, kernel_type=kernel, one_class=1,
             kernel_params=[float(p) for p in parameters], support_vectors=f32(12).tolist(),
             coefficients=f32(3).tolist(), rho=[-0.3], n_supports=3, tol=1e-4)
    for transform in ("NONE", "LOGISTIC", "SOFTMAX"):
        for k in (2, 3):
            case("SVMClassifier", [x], 2, domain=ML, coefficients=f32(4 * k).tolist(), rho=[0.2],
                 kernel_type="LINEAR", kernel_params=[0.0, 0.0, 0.0],
                 classlabels_strings=["a", "b", "c"][:k], post_transform=transform)
    case("SVMClassifier", [x], 2, domain=ML, coefficients=abs(f32(8)).tolist(), rho=[0.2],
         kernel_type="LINEAR", kernel_params=[0.0, 0.0, 0.0], classlabels_ints=[3, 4])
    case("SVMRegressor", [x], domain=ML, kernel_type="LINEAR", kernel_params=[0.0, 0.0, 0.0],
         coefficients=f32(4).tolist(), rho=[0.3])
    case("SVMClassifier", [ints(-3, 4, 3, 4)], 2, domain=ML, coefficients=f32(8).tolist(), rho=[0.2],
         kernel_type="LINEAR", kernel_params=[0.0, 0.0, 0.0], classlabels_ints=[3, 4])


# ---- trees ----

def random_trees(count, depth, features, targets, modes, tracks, weight=lambda: float(f32(1)[0]),
                 target_of=None):
    nodes = {k: [] for k in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids",
                             "falsenodeids", "missing_value_tracks_true")}
    leaves = {k: [] for k in ("treeids", "nodeids", "ids", "weights")}

    def add(tree, level, counter):
        me = counter[0]
        counter[0] += 1
        row = len(nodes["treeids"])
        leaf = level == depth or (level > 0 and rng.random() < 0.25)
        for key, value in dict(
                treeids=tree, nodeids=me, featureids=0 if leaf else int(rng.integers(features)),
                values=0.0 if leaf else float(np.float32(rng.integers(-2, 3) / 2)),
                modes="LEAF" if leaf else str(rng.choice(modes)), truenodeids=0, falsenodeids=0,
                missing_value_tracks_true=int(tracks and rng.integers(2))).items():
            nodes[key].append(value)
        if leaf:
            for target in ([target_of] if target_of is not None else
                           sorted(set(rng.integers(targets, size=2).tolist()))):
                leaves["treeids"].append(tree)
                leaves["nodeids"].append(me)
                leaves["ids"].append(target)
                leaves["weights"].append(weight())
            return me
        nodes["truenodeids"][row] = add(tree, level + 1, counter)
        nodes["falsenodeids"][row] = add(tree, level + 1, counter)
        return me

    for tree in range(count):
        add(tree, 0, [0])
    return {f"nodes_{k}": v for k, v in nodes.items()}, leaves


MODES = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"]


def grid(rows, features):
    return (rng.integers(-3, 4, size=(rows, features)) / 2).astype(np.float32)


def trees():
    x = grid(13, 4)
    x[2, 1] = x[5, 0] = NAN
    for mode_set in [[m] for m in MODES] + [MODES]:
        for tracks in (False, True):
            nodes, leaves = random_trees(3, 3, 4, 1, mode_set, tracks, target_of=0)
            case("TreeEnsembleRegressor", [x], domain=ML, n_targets=1, **nodes,
                 **{f"target_{k}": v for k, v in leaves.items()})
    for aggregate in ("SUM", "AVERAGE", "MIN", "MAX"):
        for targets in (1, 3):
            for base in (None, targets):
                for transform in ("NONE", "SOFTMAX", "LOGISTIC"):
                    nodes, leaves = random_trees(3, 2, 4, targets, ["BRANCH_LEQ"], False,
                                                 target_of=0 if targets == 1 else None)
                    extra = {} if base is None else {"base_values": f32(base).tolist()}
                    case("TreeEnsembleRegressor", [x[:4]], domain=ML, n_targets=targets,
                         aggregate_function=aggregate, post_transform=transform, **nodes, **extra,
                         **{f"target_{k}": v for k, v in leaves.items()})
    for labels in (2, 3, 4):
        for transform in ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"):
            for base in (None, labels):
                nodes, leaves = random_trees(4, 2, 4, labels, ["BRANCH_LEQ"], False)
                extra = {} if base is None else {"base_values": f32(base).tolist()}
                case("TreeEnsembleClassifier", [x[:6]], 2, domain=ML, post_transform=transform,
                     classlabels_int64s=[3, 5, 7, 9][:labels], **nodes, **extra,
                     **{f"class_{k}": v for k, v in leaves.items()})
    for side in (0, 1):
        for positive in (False, True):
            for transform in ("NONE", "LOGISTIC", "SOFTMAX"):
                for base in (None, 1, 2):
                    weight = (lambda: float(abs(f32(1)[0]) / 3)) if positive else (lambda: float(f32(1)[0]))
                    nodes, leaves = random_trees(2, 2, 4, 2, ["BRANCH_LEQ"], False, weight, side)
                    extra = {} if base is None else {"base_values": f32(base).tolist()}
                    case("TreeEnsembleClassifier", [x[:6]], 2, domain=ML, post_transform=transform,
                         classlabels_strings=["no", "yes"], **nodes, **extra,
                         **{f"class_{k}": v for k, v in leaves.items()})
    for dtype in ("float64", "int64", "int32"):
        nodes, leaves = random_trees(5, 3, 4, 3, ["BRANCH_LEQ"], False)
        case("TreeEnsembleClassifier", [np.nan_to_num(x * 2).astype(dtype)], 2, domain=ML,
             classlabels_strings=["a", "b", "c"], **nodes, **{f"class_{k}": v for k, v in leaves.items()})
    nodes, leaves = random_trees(9, 3, 4, 1, ["BRANCH_LT"], False, target_of=0)
    case("TreeEnsembleRegressor", [x.astype(np.float64)], domain=ML, n_targets=1, **nodes,
         **{f"target_{k}": v for k, v in leaves.items()})
    doubles = {k: v for k, v in nodes.items() if k != "nodes_values"}
    tensor = lambda v: numpy_helper.from_array(np.array(v, np.float64))
    case("TreeEnsembleRegressor", [x.astype(np.float64)], domain=ML, n_targets=1, **doubles,
         nodes_values_as_tensor=tensor(np.array(nodes["nodes_values"]) + 1e-9),
         target_weights_as_tensor=tensor(leaves["weights"]),
         **{f"target_{k}": v for k, v in leaves.items() if k != "weights"})
    nodes, leaves = random_trees(20, 3, 4, 1, ["BRANCH_LEQ"], False, target_of=0)
    case("TreeEnsembleRegressor", [grid(70, 4)], domain=ML, n_targets=1, **nodes, tol=1e-4,
         **{f"target_{k}": v for k, v in leaves.items()})
    case("TreeEnsembleRegressor", [grid(0, 4)], domain=ML, n_targets=1, **nodes,
         **{f"target_{k}": v for k, v in leaves.items()})
    for dtype in (np.float32, np.float64):
        for aggregate in (0, 1, 2, 3):
            unified_trees(dtype, aggregate)


def unified_trees(dtype, aggregate):
    # Two trees: one of three nodes with a set, one that is a leaf.
    tensor = lambda v, t=dtype: numpy_helper.from_array(np.array(v, t))
    for transform in (0, 1, 2):
        case("TreeEnsemble", [np.round(grid(9, 3) * 2).astype(dtype)], domain=ML, opset=5, n_targets=2,
             aggregate_function=aggregate, post_transform=transform,
             tree_roots=[0, 3], nodes_featureids=[0, 1, 2, 0],
             nodes_modes=tensor([0, 6, 4, 0], np.uint8), nodes_splits=tensor([0.5, 0, 1, 0]),
             nodes_truenodeids=[1, 0, 2, 4], nodes_falsenodeids=[2, 1, 3, 4],
             nodes_trueleafs=[0, 1, 1, 1], nodes_falseleafs=[0, 1, 1, 1],
             membership_values=tensor([-1, 0, 1, NAN]),
             leaf_targetids=[0, 1, 0, 1, 0], leaf_weights=tensor([1.5, -2, 0.25, 3, 0.1]))


# ---- preparation ----

def preparation():
    x = np.vstack([f32(3, 4), [[NAN, 0, -1, 2]], [[0, 0, 0, 0]]]).astype(np.float32)
    for norm in ("MAX", "L1", "L2"):
        case("Normalizer", [x], domain=ML, norm=norm)
        case("Normalizer", [ints(-5, 5, 3, 2)], domain=ML, norm=norm)
        case("Normalizer", [-abs(f32(2, 3)).astype(np.float64)], domain=ML, norm=norm)
    case("Scaler", [x], domain=ML, offset=f32(4).tolist(), scale=f32(4).tolist())
    case("Scaler", [x], domain=ML, offset=[0.5], scale=[2.0])
    case("Scaler", [ints(-5, 5, 3, 2)], domain=ML, offset=[0.5, 1], scale=[2.0, 3])
    case("Scaler", [x], domain=ML, offset=[0.5, 1], scale=[2.0, 3], error=True)
    case("Binarizer", [f32(3, 4)], domain=ML, threshold=0.25)
    case("Binarizer", [x], domain=ML, threshold=0.25, error=True)
    case("Imputer", [x], domain=ML, imputed_value_floats=[1.0, 2, 3, 4], replaced_value_float=NAN)
    case("Imputer", [x], domain=ML, imputed_value_floats=[7.0], replaced_value_float=0.0)
    case("Imputer", [ints(0, 3, 3, 2)], domain=ML, imputed_value_int64s=[9, 8], replaced_value_int64=1)
    case("OneHotEncoder", [ints(0, 6, 3, 2)], domain=ML, cats_int64s=[1, 2, 5])
    case("OneHotEncoder", [np.array([[1.7, 2, 9]], np.float32)], domain=ML, cats_int64s=[1, 2, 5])
    case("OneHotEncoder", [strings(["a", "b", "z"], 2, 3)], domain=ML, cats_strings=["b", "a"])
    case("OneHotEncoder", [np.array([1, 3], np.int64)], domain=ML, cats_int64s=[1, 2], zeros=0, error=True)
    case("ArrayFeatureExtractor", [x, np.array([2, 0, 2], np.int64)], domain=ML)
    case("ArrayFeatureExtractor", [x[0], np.array([3], np.int64)], domain=ML)
    case("ArrayFeatureExtractor", [of("str", 2, 3), np.array([[1, 2]], np.int64)], domain=ML)
    case("ArrayFeatureExtractor", [x, np.array([4], np.int64)], domain=ML, error=True)
    case("ArrayFeatureExtractor", [x, np.array([-1], np.int64)], domain=ML, error=True)
    case("FeatureVectorizer", [f32(3, 1), f32(3, 2)], domain=ML, inputdimensions=[1, 2])
    case("FeatureVectorizer", [ints(0, 5, 3, 2), ints(0, 5, 3, 3)], domain=ML, inputdimensions=[3, 1])
    words = strings(["a", "b", "q"], 6)
    numbers = ints(0, 4, 6)
    case("LabelEncoder", [words], domain=ML, opset=1, classes_strings=["b", "a"], default_int64=-7)
    case("LabelEncoder", [numbers], domain=ML, opset=1, classes_strings=["b", "a"])
    floats = np.array([0.5, NAN, -0.0, 2], np.float32)
    for keys in ({"keys_strings": ["a", "b"]}, {"keys_int64s": [1, 2]}, {"keys_floats": [0.0, 0.5]}):
        source = words if "keys_strings" in keys else numbers if "keys_int64s" in keys else floats
        for values in ({"values_strings": ["x", "y"]}, {"values_int64s": [5, 6]}, {"values_floats": [0.5, 1.5]}):
            case("LabelEncoder", [source], domain=ML, opset=2, **keys, **values)
            case("LabelEncoder", [source], domain=ML, opset=4, **keys, **values)
    case("LabelEncoder", [floats], domain=ML, opset=2, keys_floats=[NAN, 0.5], values_strings=["n", "h"])
    case("LabelEncoder", [floats], domain=ML, opset=4, keys_floats=[NAN, 0.5], values_strings=["n", "h"])
    case("LabelEncoder", [words], domain=ML, opset=4, keys_strings=["b", "b", "a"],
         values_tensor=numpy_helper.from_array(np.array([3, 4, 5], np.int64)),
         default_tensor=numpy_helper.from_array(np.array([-9], np.int64)))
    case("LabelEncoder", [words], domain=ML, opset=4, keys_strings=["b", "a"],
         values_tensor=numpy_helper.from_array(np.array([3, 4], np.float32)),
         default_tensor=numpy_helper.from_array(np.array([NAN], np.float32)))
    case("CategoryMapper", [words], domain=ML, cats_strings=["a", "b"], cats_int64s=[4, 5])
    case("CategoryMapper", [numbers], domain=ML, cats_strings=["a", "b"], cats_int64s=[1, 3], default_string="?")


# ---- shapes ----

MOVABLE = ["float32", "int64", "bool", "str", "float64", "uint8", "int32"]


def shapes():
    i64 = lambda *v: np.array(v, np.int64)
    for n, dtype in enumerate(MOVABLE):
        x = of(dtype, 2, 3, 4)
        pick = lambda *options: options[n % len(options)]
        case("Transpose", [x], perm=pick([2, 0, 1], [0, 2, 1], [1, 0, 2], [2, 1, 0]))
        case("Transpose", [x])
        case("Slice", [x, i64(-3, 1), i64(100, -1), i64(2, 1), i64(2, 1)], opset=13)
        case("Slice", [x, i64(3, -1), i64(-99, -99), i64(2, 0), i64(-1, -2)], opset=13)
        case("Concat", [x, of(dtype, 2, 1, 4), of(dtype, 2, 0, 4)], axis=-2)
        case("Expand", [of(dtype, 3, 1), i64(2, 1, 4)])
        case("Tile", [of(dtype, 2, 3), i64(2, 3)])
        if dtype != "str":  # onnxruntime 1.32 loses strings here
            case("Gather", [x, ints(-3, 3, 2, 2)], axis=1)
        case("Gather", [x, np.array(1, np.int32)], axis=pick(0, -1))
        case("GatherElements", [x, ints(-2, 2, 2, 2, 3)], axis=1)
        case("GatherND", [x, ints(-2, 2, 3, 2)], opset=13)
        case("GatherND", [x, ints(-2, 2, 2, 1)], opset=13, batch_dims=1)
        case("ScatterElements", [x, np.stack([np.stack([rng.permutation(4)[:2] for _ in range(2)])] * 2), of(dtype, 2, 2, 2)], axis=2)
        case("ScatterND", [x, np.array([[0, 1], [1, 2]], np.int64), of(dtype, 2, 4)], opset=18)
        case("Compress", [x, np.array([False, True, True])], axis=-1)
        case("Compress", [x, np.array([False, True, True, False, True])])
        case("Identity", [x])
        case("Shape", [x], start=-2)
        case("Size", [x])
        case("Reshape", [x, i64(0, -1, 2)])
        case("Split", [x], 2, opset=18, num_outputs=2, axis=1)
        case("Split", [x, i64(1, 3)], 2, opset=13, axis=-1)
        case("Unique", [of(dtype, 7)], 4)
        case("Where", [of("bool", 2, 1), of(dtype, 2, 3), of(dtype, 1, 3)])
        if dtype not in ("str",):
            case("ReverseSequence", [of(dtype, 3, 2, 2), i64(2, 3)])
            case("Trilu", [x, np.array(n - 3, np.int64)], upper=n % 2)
            case("NonZero", [x])
        case("Pad", [of(dtype, 2, 3), i64(1, 0, 2, 1)], opset=18)
    x = f32(3, 4)
    for mode in ("reflect", "edge", "wrap"):
        case("Pad", [x, i64(1, 2, 2, 1)], opset=19, mode=mode)
        case("Pad", [x, i64(-1, 2, 0, -2)], opset=19, mode=mode)
        case("Pad", [f32(2, 3, 5), i64(4, 3), None, i64(2)], opset=19, mode=mode)
    case("Pad", [x, i64(1, -2), np.array(7, np.float32), i64(-1)], opset=18)
    case("Pad", [x], opset=2, pads=[1, 0, 0, 2], value=0.5)
    case("Pad", [x, i64(0, 1, 0, 1), np.array(NAN, np.float32)], opset=11)
    case("Slice", [x], opset=9, starts=[0, 1], ends=[2, 1000], axes=[0, 1])
    case("Slice", [x, i64(2), i64(0), i64(0), i64(2)], opset=13)
    case("Slice", [x, i64(0), i64(2), i64(0), i64(0)], opset=13, error=True)
    case("Flatten", [f32(2, 3, 4)], axis=2)
    case("Flatten", [f32(2, 3, 4)], axis=-1)
    case("Flatten", [f32(2, 3, 4)], axis=3)
    case("Flatten", [f32(2, 3, 4)], axis=0)
    case("Squeeze", [f32(1, 3, 1)], opset=11, axes=[0])
    case("Squeeze", [f32(1, 3, 1), i64(-1)], opset=13, const=[1])
    case("Squeeze", [f32(1, 3, 1)], opset=13)
    case("Squeeze", [f32(1, 3, 1), i64(1)], opset=13, error=True)
    case("Unsqueeze", [f32(3), i64(0, -1)], opset=13, const=[1])
    case("Unsqueeze", [f32(3)], opset=11, axes=[0, 2])
    case("Reshape", [f32(2, 0, 3), i64(3, 0, 2)], opset=14, allowzero=1)
    case("Reshape", [f32(2, 3), i64(4, -1)], error=True)
    case("Expand", [f32(3), i64(2)], error=True)
    case("Split", [f32(5, 2)], 3, opset=18, num_outputs=3)
    case("Split", [f32(6, 2)], 3, opset=11)
    case("Split", [f32(6, 2)], 2, opset=11, split=[2, 4])
    case("Gather", [f32(3), i64(3)], error=True)
    case("GatherND", [f32(3, 2), np.array([[3, 0]], np.int64)], opset=13, error=True)
    case("ScatterND", [f32(3, 2), np.array([[3, 0]], np.int64), f32(1)], opset=18, error=True)
    case("GatherElements", [f32(3), i64(5)], error=True)
    case("Concat", [f32(2, 3), f32(3, 3)], axis=1, error=True)
    case("Transpose", [f32(20, 18)])
    case("Transpose", [f32(1, 18, 17, 2)], perm=[0, 3, 1, 2])
    for reduction in ("add", "mul", "min", "max"):
        case("ScatterElements", [f32(3, 3), ints(-3, 3, 4, 3)[:3], f32(3, 3)], axis=0, reduction=reduction, opset=18)
        case("ScatterND", [f32(3, 2), ints(0, 3, 4, 1), f32(4, 2)], reduction=reduction, opset=18)
    case("Scatter", [f32(3, 3), np.array([[0, 2, 1]], np.int64), f32(1, 3)], opset=9, axis=0)
    case("DepthToSpace", [f32(1, 8, 2, 3)], blocksize=2, mode="DCR")
    case("DepthToSpace", [f32(1, 8, 2, 3)], blocksize=2, mode="CRD")
    case("SpaceToDepth", [f32(1, 2, 4, 6)], blocksize=2)
    case("ConstantOfShape", [i64(2, 3)], value=numpy_helper.from_array(np.array([7], np.int32)))
    case("ConstantOfShape", [i64(2, 0)])
    case("ConstantOfShape", [np.zeros(0, np.int64)])
    case("ConstantOfShape", [i64(-1)], error=True)
    case("Dropout", [f32(2, 3)], 2, opset=13)
    case("ReverseSequence", [f32(2, 3), i64(1, 3)], batch_axis=0, time_axis=1)
    for value in ({"value_float": 1.5}, {"value_ints": [1, 2]}, {"value_strings": ["a", "b"]}, {"value_int": 3},
                  {"value_floats": [0.5]}, {"value_string": "z"}):
        node = helper.make_node("Constant", [], ["y0"], **value)
        graph_case(f"Constant-{list(value)[0]}", [node], {}, ["y0"], {})


def resizes():
    x = f32(1, 1, 4, 5)
    nothing = np.zeros(0, np.float32)
    scale = lambda *v: np.array(v, np.float32)
    transforms = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]
    for transform in transforms:
        for mode in ("linear", "cubic"):
            for s in (scale(1, 1, 2, 1.6), scale(1, 1, 0.6, 0.7)):
                case("Resize", [x, None, s], opset=19, mode=mode, coordinate_transformation_mode=transform, tol=1e-4)
            case("Resize", [x, None, None, np.array([1, 1, 7, 1], np.int64)], opset=19, const=[3], mode=mode,
                 coordinate_transformation_mode=transform, tol=1e-4)
        for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
            for s in (scale(1, 1, 2, 1.6), scale(1, 1, 0.6, 0.7)):
                case("Resize", [x, None, s], opset=19, mode="nearest", nearest_mode=nearest,
                     coordinate_transformation_mode=transform)
    case("Resize", [x, scale(0, 0, 0.2, 0.3, 1, 1, 1.2, 0.8), None, np.array([1, 1, 3, 4], np.int64)], opset=19, const=[3],
         mode="linear", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=9.0, tol=1e-4)
    case("Resize", [x, None, scale(1, 1, 2, 2)], opset=19, mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5, tol=1e-4)
    for mode in ("linear", "cubic"):
        case("Resize", [x, None, scale(1, 1, 0.5, 0.6)], opset=19, mode=mode, antialias=1, tol=1e-4)
    for policy in ("not_larger", "not_smaller"):
        case("Resize", [x, None, None, np.array([7, 6], np.int64)], opset=19, const=[3], axes=[2, 3],
             keep_aspect_ratio_policy=policy, mode="nearest")
    case("Resize", [x, nothing, scale(1, 1, 2, 3)], opset=11, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    case("Resize", [x, scale(1, 1, 2, 3)], opset=10, mode="nearest")
    case("Resize", [x, scale(1, 1, 0.6, 0.5)], opset=10, mode="nearest")
    case("Resize", [x, scale(1, 1, 2, 1.5)], opset=10, mode="linear", tol=1e-4)
    case("Upsample", [x, scale(1, 1, 2, 3)], opset=9, mode="nearest")
    case("Upsample", [x, scale(1, 1, 2, 3)], opset=9, mode="linear", tol=1e-4)
    case("Upsample", [x], opset=7, mode="nearest", scales=[1.0, 1, 2, 2])
    case("Resize", [of("uint8", 1, 1, 3, 3), None, scale(1, 1, 2, 2)], opset=19, mode="nearest")
    case("Resize", [f32(4), None, scale(2.5)], opset=19, mode="linear", tol=1e-4)


# ---- indices ----

def indices():
    x = f32(3, 4, 5).round(1)
    x[0, 1, 2] = x[0, 1, 3]
    for dtype in ("float32", "float64", "int64", "int32"):
        d = (x * 10).astype(dtype)
        for axis in (0, -1):
            for largest in (0, 1):
                case("TopK", [d, np.array([2], np.int64)], 2, opset=11, axis=axis, largest=largest, sorted=1)
        for op in ("ArgMax", "ArgMin"):
            if dtype != "int64":
                case(op, [d], opset=13, axis=1, keepdims=0)
                case(op, [d], opset=13, axis=-1, select_last_index=1)
        case("CumSum", [d, np.array(1, np.int32)], opset=14)
        case("CumSum", [d, np.array(-1, np.int64)], opset=14, reverse=1, exclusive=1)
    case("TopK", [x], 2, opset=1, axis=1, k=3)
    case("TopK", [x, np.array([3], np.int64)], 2, opset=10, axis=2)
    case("TopK", [x, np.array([6], np.int64)], 2, opset=11, axis=2, error=True)
    case("TopK", [x, np.array([0], np.int64)], 2, opset=11, axis=2)
    s = lambda v, t: np.array(v, t)
    for t in (np.float32, np.float64, np.int64, np.int32, np.int16):
        case("Range", [s(1, t), s(10, t), s(3, t)])
        if t != np.int16:
            case("Range", [s(5, t), s(-4, t), s(-2, t)])
        case("Range", [s(5, t), s(1, t), s(2, t)])
    case("Range", [s(0, np.float32), s(1, np.float32), s(0.1, np.float32)])
    case("OneHot", [ints(-4, 6, 2, 3), np.array([4], np.int64), s([0.5, 2], np.float32)], axis=1)
    case("OneHot", [ints(0, 3, 3), np.array(3, np.int64), s([0, 1], np.int64)])
    case("OneHot", [ints(0, 3, 3).astype(np.float32), np.array(3, np.float32), s([0, 1], np.float32)], axis=0)
    case("EyeLike", [f32(3, 4)], k=1)
    case("EyeLike", [f32(3, 4)], k=-1, dtype=TensorProto.INT64)
    for upper in (0, 1):
        for k in (-3, -1, 0, 2, 9):
            case("Trilu", [f32(3, 4), np.array(k, np.int64)], upper=upper)
    case("NonZero", [np.array(5, np.float32)])
    case("NonZero", [np.zeros((2, 2), np.float32)])
    for axis in (None, 0, 1):
        for srt in (0, 1):
            extra = {} if axis is None else {"axis": axis}
            case("Unique", [ints(0, 2, 4, 3).astype(np.float32)], 4, sorted=srt, **extra)
    boxes = rng.random((2, 8, 4)).astype(np.float32)
    scores = rng.random((2, 3, 8)).astype(np.float32)
    for centre in (0, 1):
        case("NonMaxSuppression", [boxes, scores, np.array([3], np.int64), s([0.3], np.float32), s([0.2], np.float32)],
             center_point_box=centre)
    case("NonMaxSuppression", [boxes, scores, np.array([2], np.int64)])
    for metric in ("euclidean", "sqeuclidean"):
        case("CDist", [f32(4, 3), f32(5, 3)], domain=MS, metric=metric, tol=1e-4)
        case("CDist", [f32(2, 3).astype(np.float64), f32(2, 3).astype(np.float64)], domain=MS, metric=metric, tol=1e-4)


# ---- control flow ----

def info(name, dtype=TensorProto.FLOAT, shape=None):
    return helper.make_tensor_value_info(name, dtype, shape)


def control():
    node = helper.make_node
    then = helper.make_graph([node("Add", ["x", "x"], ["t"])], "t", [], [info("t")])
    other = helper.make_graph([node("Mul", ["x", "k"], ["e"])], "e", [], [info("e")],
                              [numpy_helper.from_array(np.array(3, np.float32), "k")])
    for flag in (True, False):
        graph_case(f"If-{flag}", [node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
                   {"c": np.array(flag), "x": f32(2, 3)}, ["y"], {"": 16})
    body = helper.make_graph(
        [node("Add", ["s", "x"], ["s2"]), node("ReduceSum", ["s2"], ["sum"], keepdims=0),
         node("Less", ["sum", "limit"], ["go"]), node("Identity", ["s2"], ["scan"])],
        "b", [info("i", TensorProto.INT64, []), info("c", TensorProto.BOOL, []), info("s", shape=[2])],
        [info("go", TensorProto.BOOL, []), info("s2", shape=[2]), info("scan", shape=[2])])
    for trips in (0, 3, 50):
        graph_case(f"Loop-{trips}", [node("Loop", ["m", "", "s0"], ["y", "all"], body=body)],
                   {"m": np.array(trips, np.int64), "s0": np.zeros(2, np.float32), "x": np.array([1, 2], np.float32),
                    "limit": np.array(20, np.float32)}, ["y", "all"], {"": 16})
    scan = helper.make_graph(
        [node("Add", ["s", "a"], ["s2"]), node("Mul", ["a", "b"], ["p"])],
        "b", [info("s", shape=[3]), info("a", shape=[3]), info("b", shape=[3])],
        [info("s2", shape=[3]), info("p", shape=[3])])
    for n, extra in enumerate([{}, {"scan_input_directions": [1, 0]}, {"scan_output_directions": [1]},
                               {"scan_output_axes": [1]}, {"scan_input_axes": [0, 1]}]):
        b = f32(3, 4) if n == 4 else f32(4, 3)
        graph_case(f"Scan-{n}", [node("Scan", ["s0", "a", "b"], ["y", "all"], body=scan, num_scan_inputs=2, **extra)],
                   {"s0": f32(3), "a": f32(4, 3), "b": b}, ["y", "all"], {"": 16})
    graph_case("Scan-empty", [node("Scan", ["s0", "a", "b"], ["y", "all"], body=scan, num_scan_inputs=2)],
               {"s0": f32(3), "a": f32(0, 3), "b": f32(0, 3)}, ["y", "all"], {"": 16})
    graph_case("Scan-8", [node("Scan", ["", "s0", "a", "b"], ["y", "all"], body=scan, num_scan_inputs=2)],
               {"s0": f32(2, 3), "a": f32(2, 4, 3), "b": f32(2, 4, 3)}, ["y", "all"], {"": 8})
    graph_case("Scan-8-lengths", [node("Scan", ["n", "s0", "a", "b"], ["y", "all"], body=scan, num_scan_inputs=2,
                                       directions=[1, 0])],
               {"n": np.array([2, 4], np.int64), "s0": f32(2, 3), "a": f32(2, 4, 3), "b": f32(2, 4, 3)},
               ["y", "all"], {"": 8})


# ---- sequences ----

def sequences():
    node = helper.make_node
    a, b = f32(2, 3), f32(2, 3)
    make = node("SequenceConstruct", ["a", "b"], ["s"])
    ends = {"a": a, "b": b}
    graph_case("SequenceAt", [make, node("SequenceAt", ["s", "i"], ["y"])], {**ends, "i": np.array(-1, np.int64)}, ["y"], {})
    graph_case("SequenceAt-out", [make, node("SequenceAt", ["s", "i"], ["y"])], {**ends, "i": np.array(2, np.int64)}, ["y"], {}, error=True)
    graph_case("SequenceLength", [make, node("SequenceErase", ["s"], ["r"]), node("SequenceLength", ["r"], ["y"])], ends, ["y"], {})
    graph_case("SequenceInsert", [make, node("SequenceInsert", ["s", "b", "i"], ["r"]), node("ConcatFromSequence", ["r"], ["y"], axis=0)],
               {**ends, "i": np.array(0, np.int64)}, ["y"], {})
    graph_case("ConcatFromSequence", [make, node("ConcatFromSequence", ["s"], ["y"], axis=-1, new_axis=1)], ends, ["y"], {})
    graph_case("SplitToSequence", [node("SplitToSequence", ["a", "n"], ["s"], axis=1), node("SequenceAt", ["s", "i"], ["y"])],
               {"a": a, "n": np.array(2, np.int64), "i": np.array(1, np.int64)}, ["y"], {})
    graph_case("SplitToSequence-keep", [node("SplitToSequence", ["a"], ["s"], axis=1, keepdims=0), node("SequenceAt", ["s", "i"], ["y"])],
               {"a": a, "i": np.array(1, np.int64)}, ["y"], {})
    graph_case("SplitToSequence-sizes", [node("SplitToSequence", ["a", "n"], ["s"], axis=1), node("ConcatFromSequence", ["s"], ["y"], axis=1)],
               {"a": a, "n": np.array([1, 2], np.int64)}, ["y"], {})
    graph_case("SequenceEmpty", [node("SequenceEmpty", [], ["s"]), node("SequenceInsert", ["s", "a"], ["r"]), node("SequenceAt", ["r", "i"], ["y"])],
               {"a": a, "i": np.array(0, np.int64)}, ["y"], {})
    graph_case("OptionalHasElement", [node("Optional", ["a"], ["o"]), node("OptionalHasElement", ["o"], ["y"]), node("OptionalGetElement", ["o"], ["z"])],
               {"a": a}, ["y", "z"], {})


# ---- text ----

def texts():
    words = np.array(["The quick", "brown", "FOX", "Straße", "", "brown"], object)
    for action in ("LOWER", "UPPER", "NONE"):
        for sensitive in (0, 1):
            case("StringNormalizer", [words], case_change_action=action, is_case_sensitive=sensitive, stopwords=["brown", "fox"], locale="C.utf8")
    case("StringNormalizer", [words[:1].reshape(1, 1)], case_change_action="UPPER", locale="C.utf8")
    case("StringNormalizer", [words[1:2]], case_change_action="LOWER", stopwords=["brown"], locale="C.utf8")
    for args in (dict(separators=[" ", "."], mincharnum=1), dict(tokenexp="[a-zA-Z]+", mincharnum=2),
                 dict(separators=[""], mincharnum=1), dict(tokenexp="\\b\\w\\w+\\b", mincharnum=1)):
        for mark in (0, 1):
            case("Tokenizer", [np.array(["a bc. def", "gh", "x yz"], object)], domain=MS, pad_value="#", mark=mark, **args)
    case("Tokenizer", [np.array([["a b", "c"], ["d e f", ""]], object)], domain=MS, pad_value="#", mark=0, separators=[" "], mincharnum=1)
    common = dict(ngram_counts=[0, 4], ngram_indexes=[0, 1, 2, 3, 4, 5, 6], pool_int64s=[2, 3, 5, 4, 5, 6, 7, 8, 6, 7],
                  weights=[0.5, 1, 2, 3, 4, 5, 6])
    for mode in ("TF", "IDF", "TFIDF"):
        for skip in (0, 5):
            case("TfIdfVectorizer", [ints(2, 9, 2, 12)], mode=mode, min_gram_length=1, max_gram_length=2, max_skip_count=skip, **common)
            case("TfIdfVectorizer", [ints(2, 9, 12).astype(np.int32)], mode=mode, min_gram_length=2, max_gram_length=2, max_skip_count=skip, **common)
    mixed = {**common, "ngram_indexes": [6, 0, 2, 1, 5, 4, 3]}
    for mode in ("IDF", "TFIDF"):
        case("TfIdfVectorizer", [ints(2, 9, 2, 12)], mode=mode, min_gram_length=1, max_gram_length=2, max_skip_count=1, **mixed)
    pool = dict(ngram_counts=[0, 3], ngram_indexes=[2, 0, 1, 3], pool_strings=["a", "b", "c", "a", "b"])
    case("TfIdfVectorizer", [strings(["a", "b", "c"], 3, 6)], mode="TF", min_gram_length=1, max_gram_length=2, max_skip_count=0, **pool)
    case("StringConcat", [of("str", 2, 3), of("str", 3)], opset=20)
    case("StringSplit", [np.array(["a,b", "c,,d", ""], object)], 2, opset=20, delimiter=",")
    case("StringSplit", [np.array(["a b", "  c  d e "], object)], 2, opset=20)
    case("StringSplit", [np.array(["a,b,c", "d"], object)], 2, opset=20, delimiter=",", maxsplit=1)
    case("RegexFullMatch", [np.array(["abc", "a1", "", "abcd"], object)], opset=20, pattern="[a-z]{3}")


# ---- quantisation ----

def quants():
    x = f32(3, 4) * 3
    for dtype in (np.uint8, np.int8):
        zero = np.array(3, dtype)
        case("QuantizeLinear", [x, np.array(0.05, np.float32), zero], opset=13)
        case("QuantizeLinear", [x, abs(f32(4)) + np.float32(0.01), rng.integers(0, 9, 4).astype(dtype)], opset=13, axis=-1)
        case("DequantizeLinear", [of(np.dtype(dtype).name, 3, 4), np.array(0.05, np.float32), zero], opset=13)
        case("DequantizeLinear", [of(np.dtype(dtype).name, 3, 4), abs(f32(3)), rng.integers(0, 9, 3).astype(dtype)], opset=13, axis=0)
        case("QuantizeLinear", [f32(2, 6), abs(f32(2, 3)) + np.float32(0.01), rng.integers(0, 9, (2, 3)).astype(dtype)], opset=21, axis=1, block_size=2)
        case("DequantizeLinear", [of(np.dtype(dtype).name, 2, 6), abs(f32(2, 3)), rng.integers(0, 9, (2, 3)).astype(dtype)], opset=21, axis=1, block_size=2)
    case("QuantizeLinear", [x, np.array(0.05, np.float32)], opset=13)
    case("DequantizeLinear", [ints(-99, 99, 3, 4).astype(np.int32), np.array(0.05, np.float32)], opset=13)
    case("QuantizeLinear", [np.array([0.5, 1.5, 2.5, -0.5, 1e9, -1e9], np.float32), np.array(1, np.float32), np.array(0, np.int8)], opset=13)
    case("DynamicQuantizeLinear", [x], 3, opset=11)
    case("DynamicQuantizeLinear", [abs(f32(2, 2)) + 1], 3, opset=11)
    case("DynamicQuantizeLinear", [np.zeros((2, 2), np.float32)], 3, opset=11)
    for a, b in (("uint8", "uint8"), ("uint8", "int8"), ("int8", "int8")):
        big = lambda d, *s: (rng.integers(0, 256, s) if d == "uint8" else rng.integers(-128, 128, s)).astype(d)
        A, B = big(a, 5, 7), big(b, 7, 6)
        case("MatMulInteger", [A, B], opset=10)
        case("MatMulInteger", [A, B, np.array(9, a), np.array(4, b)], opset=10, const=[1, 3])
        case("MatMulInteger", [big(a, 2, 3, 4), big(b, 2, 4, 5), np.array(9, a), big(b, 2, 1, 5) if False else np.array(1, b)], opset=10)
        scale = lambda v: np.array(v, np.float32)
        case("QLinearMatMul", [A, scale(0.02), np.array(5, a), B, scale(0.03), np.array(2, b), scale(0.9), np.array(7, a)], opset=10)
        image, kernel = big(a, 1, 2, 5, 5), big(b, 3, 2, 3, 3)
        if a == "uint8":
            case("ConvInteger", [image, kernel[:, :, :, :], np.array(4, a), np.array(0, b)], opset=10, pads=[1, 1, 1, 1])
            case("ConvInteger", [image, kernel], opset=10, strides=[2, 2])
        case("QLinearConv", [image, scale(0.02), np.array(5, a), kernel, scale(0.03), np.array(0, b), scale(0.5), np.array(7, a),
                             ints(-99, 99, 3).astype(np.int32)], opset=10, pads=[1, 0, 1, 0], strides=[1, 2])
        case("QLinearConv", [image, scale(0.02), np.array(5, a), kernel, abs(f32(3)) + np.float32(0.01), np.zeros(3, b), scale(0.5), np.array(7, a)],
             opset=10)


if __name__ == "__main__":
    write(__file__, (linear, svm, trees, preparation, shapes, resizes, indices, control, sequences, texts, quants))
