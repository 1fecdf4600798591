"""Makes the demo endpoints from scikit-learn's bundled data sets.

    python make_demo.py

writes one folder per endpoint beside this script:

    model.onnx      the model, trained on four fifths of the rows
    tabular.json    configuration of the transform in front of it, if there is one
    tests.toml      the self-tests that travel with the deployment
    holdout.csv     labelled rows that the model was not trained on
    request.json    a request on real rows
    expected/       onnxruntime's outputs for every row of the data set

Needs numpy, scikit-learn, onnxruntime, skl2onnx, onnxmltools and xgboost, in
the versions of tests/requirements.txt.
"""

import csv
import json
import pathlib

import numpy as np
import onnxmltools
import onnxmltools.convert.common.data_types as oml_types
import onnxruntime
import skl2onnx
import skl2onnx.common.data_types as types
import xgboost
from sklearn import datasets, linear_model, model_selection, neural_network

ROOT = pathlib.Path(__file__).parent
OPSET = {"": 17, "ai.onnx.ml": 3}


def main():
    digits()
    breast_cancer()
    wine()


def digits():
    data = datasets.load_digits()
    x = data.data.astype(np.float32)
    train, test = split(data)
    model = neural_network.MLPClassifier((64,), max_iter=400, random_state=0).fit(x[train], data.target[train])
    name = "pixels"
    names = [f"pixel_{index}" for index in range(64)]
    write_model("digits", from_sklearn(model, name, 64))
    write_expected("digits", {name: x})
    # 200 rows are enough to tell a good model from a bad one.
    test = test[:200]
    write_holdout("digits", names, data.data[test].astype(int), data.target[test])
    write_tests("digits", {name: names}, "accuracy >= 0.95")
    write_request("digits", {name: x[:2]})


def breast_cancer():
    """The model takes scaled features; the transform makes them from the raw columns."""
    data = datasets.load_breast_cancer()
    x = data.data.astype(np.float32)
    names = [str(name) for name in data.feature_names]
    train, test = split(data)
    mean, std = (statistic.astype(np.float32) for statistic in (x[train].mean(0), x[train].std(0)))
    scaled = (x - mean) / std
    model = linear_model.LogisticRegression(C=0.1).fit(scaled[train], data.target[train])
    write_model("breast-cancer", from_sklearn(model, "features", 30))
    write_expected("breast-cancer", {"features": scaled})
    medians = np.median(x[train], axis=0)
    config = {
        "columns": [{"name": name, "type": "number"} for name in names],
        "steps": [
            {"step": "impute", "values": dict(zip(names, map(short, medians)))},
            {"step": "scale", "columns": {
                name: {"mean": short(m), "std": short(s)} for name, m, s in zip(names, mean, std)}},
        ],
        "output": {"name": "features"},
    }
    (ROOT / "breast-cancer" / "tabular.json").write_text(json.dumps(config, indent=1) + "\n")
    write_holdout("breast-cancer", names, data.data[test], data.target[test])
    write_tests("breast-cancer", {name: name for name in names}, "accuracy >= 0.95")
    write_request("breast-cancer", {name: x[:1, [index]] for index, name in enumerate(names)})


def wine():
    data = datasets.load_wine()
    x = data.data.astype(np.float32)
    names = [str(name) for name in data.feature_names]
    train, test = split(data)
    model = xgboost.XGBClassifier(n_estimators=40, max_depth=3, random_state=0).fit(x[train], data.target[train])
    kinds = [("features", oml_types.FloatTensorType([None, 13]))]
    write_model("wine", onnxmltools.convert_xgboost(model, initial_types=kinds, target_opset=15))
    write_expected("wine", {"features": x})
    write_holdout("wine", names, data.data[test], data.target[test])
    write_tests("wine", {"features": names}, "accuracy >= 0.9")
    write_request("wine", {"features": x[[0, 100]]})


def split(data):
    rows = np.arange(len(data.target))
    return model_selection.train_test_split(rows, test_size=0.2, random_state=0, stratify=data.target)


def from_sklearn(model, name, width):
    kinds = [(name, types.FloatTensorType([None, width]))]
    return skl2onnx.convert_sklearn(
        model, initial_types=kinds, options={id(model): {"zipmap": False}}, target_opset=OPSET)


def short(value):
    """The shortest decimal that reads back as the same float32."""
    return float(str(np.float32(value)))


def write_model(endpoint, model):
    folder = ROOT / endpoint
    (folder / "expected").mkdir(parents=True, exist_ok=True)
    # The converters make up a name; a fixed one gives the same file every time.
    model.graph.name = endpoint
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))


def write_expected(endpoint, inputs):
    """onnxruntime's outputs, one `.npy` each."""
    model = str(ROOT / endpoint / "model.onnx")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for output, value in zip(session.get_outputs(), session.run(None, inputs)):
        np.save(ROOT / endpoint / "expected" / f"{output.name}.npy", value)


def write_holdout(endpoint, names, rows, labels):
    with open(ROOT / endpoint / "holdout.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*names, "target"])
        writer.writerows([*row.tolist(), label] for row, label in zip(rows, labels.tolist()))


def write_tests(endpoint, features, limit):
    columns = "\n".join(f"{json.dumps(name)} = {json.dumps(column)}" for name, column in features.items())
    (ROOT / endpoint / "tests.toml").write_text(f"""\
[[range]]
output = "probabilities"
min = 0.0
max = 1.0
sums_to_one = true

[holdout]
file = "holdout.csv"
label = "target"
output = "label"
limits = ["{limit}", "accuracy no worse than live by 0.02"]

[holdout.features]
{columns}
""")


def write_request(endpoint, inputs):
    lines = [json.dumps({
        "name": name, "datatype": "FP32", "shape": list(value.shape), "data": [short(v) for v in value.ravel()],
    }) for name, value in inputs.items()]
    text = '{"inputs": [\n' + ",\n".join(lines) + "\n]}\n"
    (ROOT / endpoint / "request.json").write_text(text)


if __name__ == "__main__":
    main()
