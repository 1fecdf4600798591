"""Exports estimators and graphs to ONNX with onnxruntime's answers.

    python export.py DIRECTORY [NAME...]

writes, for every case (or those named), `NAME.onnx` and `NAME.npz`. The
archive holds the inputs as `in:NAME` and onnxruntime's outputs as `out:NAME`;
strings are fixed-width bytes. A `ZipMap` output is stored as the matrix of its
probabilities, columns in the order of its class labels. `manifest.json` lists
the cases, and the tolerance of those that need another than 1e-5. Needs numpy, scikit-learn, onnx, onnxruntime, skl2onnx, onnxmltools,
xgboost and lightgbm.
"""

import json
import pathlib
import sys
import traceback
import warnings

import numpy as np
import onnx
import onnxruntime

import estimators
import graphs

# Where the graph is ill-conditioned in float32: onnxruntime itself is this far
# from scikit-learn in float64.
TOLERANCES = {"svc_poly_proba": 5e-5}


def main():
    directory = pathlib.Path(sys.argv[1])
    wanted = set(sys.argv[2:])
    directory.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    onnxruntime.set_default_logger_severity(4)
    manifest, failures = [], []
    for name, make in {**estimators.cases(), **graphs.cases()}.items():
        if wanted and name not in wanted:
            continue
        try:
            model, inputs = make()
            manifest.append(write(directory, name, model, inputs))
        except Exception:  # A case that cannot be exported is reported, the rest go on.
            failures.append(name)
            print(f"FAILED {name}\n{traceback.format_exc(limit=-2)}", file=sys.stderr)
    if not wanted:
        (directory / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{len(manifest)} models in {directory}, {len(failures)} failed: {failures}")
    sys.exit(bool(failures))


def write(directory, name, model, inputs):
    data = model.SerializeToString()
    (directory / f"{name}.onnx").write_bytes(data)
    names, outputs = answers(data, inputs)
    arrays = {f"in:{key}": portable(value) for key, value in inputs.items()}
    arrays |= {f"out:{key}": portable(value) for key, value in zip(names, outputs)}
    np.savez_compressed(directory / f"{name}.npz", **arrays)
    entry = {"name": name, "inputs": list(inputs), "outputs": names}
    return entry | ({"tolerance": TOLERANCES[name]} if name in TOLERANCES else {})


def answers(data, inputs):
    """onnxruntime's outputs, with lists of maps turned into matrices."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return names, [matrix(value) for value in session.run(None, inputs)]


def matrix(value):
    if isinstance(value, list) and value and isinstance(value[0], dict):
        labels = list(value[0])
        return np.array([[row[label] for label in labels] for row in value], np.float32)
    return np.asarray(value)


def portable(array):
    array = np.asarray(array)
    if array.dtype.kind not in "OU":
        return array
    texts = [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel()]
    return np.array(texts, dtype=f"S{max([len(text) for text in texts] + [1])}").reshape(array.shape)


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    main()
