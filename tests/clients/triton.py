"""Inference through tritonclient, in JSON and with binary tensors."""

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import np_to_triton_dtype


def client(server):
    return triton.InferenceServerClient(server.http, concurrency=2, network_timeout=120.0)


def infer(connection, endpoint, inputs, binary):
    """The outputs by name. `inputs` is a dict of arrays."""
    tensors = []
    for name, array in inputs.items():
        array = np.asarray(array)
        array = array.astype(np.object_) if array.dtype.kind in "SU" else array
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array, binary_data=binary)
        tensors.append(tensor)
    names = [output["name"] for output in connection.get_model_metadata(endpoint)["outputs"]]
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    answer = connection.infer(endpoint, tensors, outputs=wanted)
    return {name: answer.as_numpy(name) for name in names}


def difference(got, expected, tolerance=1e-5):
    """What is wrong with an output, or None. Numbers may differ by `tolerance`
    of the larger of 1 and the expected value."""
    if got is None:
        return "the output is missing"
    if got.shape != expected.shape:
        return f"shape {got.shape}, expected {expected.shape}"
    if expected.dtype.kind in "SUO":
        texts = [as_bytes(item) for item in got.ravel()]
        return None if texts == [as_bytes(item) for item in expected.ravel()] else "other strings"
    if got.dtype != expected.dtype:
        return f"{got.dtype}, expected {expected.dtype}"
    if expected.dtype.kind not in "f":
        wrong = int((got != expected).sum())
        return f"{wrong} of {got.size} values differ" if wrong else None
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(got - expected) / np.maximum(1.0, np.abs(expected)))
    error = np.nan_to_num(error, nan=np.inf)
    largest = float(error.max(initial=0.0))
    return f"off by {largest:.2e}, allowed {tolerance:.0e}" if largest > tolerance else None


def as_bytes(item):
    return item if isinstance(item, bytes) else str(item).encode()
