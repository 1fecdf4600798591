"""Runs ONNX's backend node tests through a running server.

Each test's model is deployed with the ONNX plugin and asked over HTTP with
binary tensors; outputs are compared with the ones ONNX ships. Prints passed,
failed and unsupported by operator, and as its last line the totals as JSON.

    python node_tests.py --http 127.0.0.1:8000 --admin 127.0.0.1:8003 --token T

A test counts as `unsupported` only when the server refused to deploy it and
said what it lacks, or when its inputs or outputs have a type for which the
Open Inference Protocol has none.
"""

import argparse
import collections
import http.client
import json
import struct
import sys

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

WIRE = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "bfloat16": "BF16", "float32": "FP32", "float64": "FP64",
}
NAME = "conformance"


class NoWireType(Exception):
    """A value has a type that the protocol cannot carry."""


class Server:
    def __init__(self, http_address, admin_address, token):
        self.http = http.client.HTTPConnection(http_address, timeout=60)
        self.admin = http.client.HTTPConnection(admin_address, timeout=60)
        self.headers = {"Authorization": f"Bearer {token}", "X-Mortise-Who": "conformance"}

    def call(self, connection, method, path, body=b"", headers=None):
        connection.request(method, path, body=body, headers=headers or {})
        reply = connection.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read()

    def upload(self, data):
        status, _, body = self.call(self.admin, "POST", "/v1/uploads", data, self.headers)
        if status >= 300:
            raise RuntimeError(f"upload: {status} {body[:300]}")
        return json.loads(body)["upload"]

    def deploy(self, model):
        """None, or the reason that the server gave for refusing."""
        request = {
            "plugin": {"name": "onnx"},
            "assets": [{"name": "model", "upload": self.upload(model)}],
        }
        path = f"/v1/endpoints/{NAME}/deploy"
        _, _, body = self.call(self.admin, "POST", path, json.dumps(request), self.headers)
        last = json.loads(body.splitlines()[-1])
        return None if last.get("event") == "deployed" else last

    def infer(self, inputs):
        described, payload = [], b""
        for name, value in inputs:
            data = encode(value)
            payload += data
            described.append({
                "name": name, "shape": list(value.shape), "datatype": wire_type(value),
                "parameters": {"binary_data_size": len(data)},
            })
        head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        status, headers, body = self.call(
            self.http, "POST", f"/v2/models/{NAME}/infer", head + payload, headers)
        if status != 200:
            raise RuntimeError(f"{status} {body[:300].decode(errors='replace')}")
        return decode_reply({k.lower(): v for k, v in headers.items()}, body)


def wire_type(value):
    if value.dtype == object or value.dtype.kind in "US":
        return "BYTES"
    name = WIRE.get(value.dtype.name)
    if name is None:
        raise NoWireType(value.dtype.name)
    return name


def encode(value):
    if wire_type(value) != "BYTES":
        return np.ascontiguousarray(value).tobytes()
    items = [v if isinstance(v, bytes) else str(v).encode() for v in value.flatten()]
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def decode_reply(headers, body):
    head_len = int(headers.get("inference-header-content-length", len(body)))
    head, data = json.loads(body[:head_len]), body[head_len:]
    outputs, at = [], 0
    for output in head["outputs"]:
        size = output["parameters"]["binary_data_size"]
        outputs.append(decode(output["datatype"], output["shape"], data[at:at + size]))
        at += size
    return outputs


def decode(datatype, shape, data):
    if datatype == "BYTES":
        items, at = [], 0
        while at < len(data):
            (size,) = struct.unpack_from("<I", data, at)
            items.append(data[at + 4:at + 4 + size].decode())
            at += 4 + size
        return np.array(items, dtype=object).reshape(shape)
    if datatype == "BF16":
        import ml_dtypes
        return np.frombuffer(data, dtype=ml_dtypes.bfloat16).reshape(shape)
    name = next(numpy for numpy, wire in WIRE.items() if wire == datatype)
    return np.frombuffer(data, dtype=name).reshape(shape)


def load_value(path, kind):
    with open(path, "rb") as file:
        data = file.read()
    if not kind.HasField("tensor_type"):
        raise NoWireType(kind.WhichOneof("value"))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def close(expected, got, case):
    if list(expected.shape) != list(got.shape):
        return f"shape {list(got.shape)}, expected {list(expected.shape)}"
    if expected.dtype == object or expected.dtype.kind in "US":
        same = [str(e) for e in expected.flatten()] == [str(g) for g in got.flatten()]
        return None if same else "strings differ"
    if expected.dtype != got.dtype:
        return f"dtype {got.dtype}, expected {expected.dtype}"
    wide = (expected.astype(np.float64), got.astype(np.float64))
    if np.allclose(wide[1], wide[0], rtol=case.rtol, atol=case.atol, equal_nan=True):
        return None
    worst = np.nanmax(np.abs(wide[0] - wide[1])) if wide[0].size else 0
    return f"differs by up to {worst:.3g}"


def run_case(server, case):
    import glob
    import os
    model_path = os.path.join(case.model_dir, "model.onnx")
    with open(model_path, "rb") as file:
        data = file.read()
    model = onnx.ModelProto.FromString(data)
    refused = server.deploy(data)
    if refused is not None:
        message = str(refused.get("reason") or refused.get("error"))
        lacks = "not supported" in message or "nsupported" in message
        return ("unsupported" if lacks or refused.get("kind") == "unsupported" else "failed"), message
    for folder in sorted(glob.glob(os.path.join(case.model_dir, "test_data_set_*"))):
        def values(kinds, prefix):
            return [load_value(os.path.join(folder, f"{prefix}_{i}.pb"), kind.type)
                    for i, kind in enumerate(kinds)]
        try:
            inputs = values(model.graph.input, "input")
            expected = values(model.graph.output, "output")
            names = [value.name for value in model.graph.input]
            got = server.infer(list(zip(names, inputs)))
        except NoWireType as error:
            return "unsupported", f"no wire type for {error}"
        for want, have in zip(expected, got):
            wrong = close(want, have, case)
            if wrong:
                return "failed", wrong
        if len(got) != len(expected):
            return "failed", f"{len(got)} outputs, expected {len(expected)}"
    return "passed", ""


def operator_of(case):
    model = onnx.load(f"{case.model_dir}/model.onnx")
    return model.graph.node[0].op_type if model.graph.node else "none"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--http", required=True)
    parser.add_argument("--admin", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--only", default="", help="substring of the tests' names")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    server = Server(args.http, args.admin, args.token)
    by_operator = collections.defaultdict(lambda: {"passed": 0, "failed": 0, "unsupported": 0})
    totals = {"passed": 0, "failed": 0, "unsupported": 0}
    cases = [case for case in load_model_tests(kind="node") if args.only in case.name]
    for index, case in enumerate(cases):
        try:
            result, why = run_case(server, case)
        except Exception as error:  # A crash of the server is a failure of the test.
            result, why = "failed", repr(error)
            server = Server(args.http, args.admin, args.token)
        totals[result] += 1
        by_operator[operator_of(case)][result] += 1
        if result != "passed" and (args.verbose or result == "failed"):
            print(f"{result:12} {case.name}: {why[:300]}", flush=True)
        if sys.stderr.isatty():
            print(f"\r{index + 1}/{len(cases)}", end="", file=sys.stderr)
    for operator, counts in sorted(by_operator.items()):
        if counts["failed"] or counts["unsupported"]:
            print(f"{operator:32} {counts['passed']:4} passed {counts['failed']:4} failed "
                  f"{counts['unsupported']:4} unsupported")
    print(json.dumps({"total": len(cases), **totals, "by_operator": by_operator}))


if __name__ == "__main__":
    main()
