"""The demo endpoints, as `mortise demo` serves them, through real clients: every
row of each data set gives onnxruntime's outputs within 1e-5."""

import asyncio
import json
import sys
import urllib.request

import kserve
import numpy as np

import triton
from endpoints import BATCH, ENDPOINTS, ROWS, digits, expected, wait_until_ready
from server import ROOT, Server, Tally


def main():
    tally = Tally()
    with Server("demo") as server:
        wait_until_ready(server, ENDPOINTS)
        connection = triton.client(server)
        for endpoint, inputs in ENDPOINTS.items():
            for binary in (False, True):
                kind = "binary" if binary else "JSON"
                tally.check(f"{endpoint}, {kind}", all_rows(connection, endpoint, inputs(), binary))
            tally.check(f"{endpoint}, curl", pasted(server, endpoint))
        tally.check("triton's health and metadata", health(connection))
        tally.check("kserve", asyncio.run(through_kserve(server)))
        tally.check("kserve over gRPC", asyncio.run(through_kserve_grpc(server)))
    return tally.finish()


def all_rows(connection, endpoint, inputs, binary):
    rows = len(next(iter(inputs.values())))
    if rows != ROWS[endpoint]:
        return f"{rows} rows, expected {ROWS[endpoint]}"
    parts = []
    for start in range(0, rows, BATCH):
        batch = {name: values[start : start + BATCH] for name, values in inputs.items()}
        parts.append(triton.infer(connection, endpoint, batch, binary))
    for name, want in expected(endpoint).items():
        got = np.concatenate([part[name] for part in parts])
        wrong = triton.difference(got, want)
        if wrong:
            return f"{name}: {wrong}"
    return None


def pasted(server, endpoint):
    """The request that `mortise demo` prints for curl."""
    body = (ROOT / "plugins/demo" / endpoint / "request.json").read_bytes()
    url = f"http://{server.http}/v2/models/{endpoint}/infer"
    with urllib.request.urlopen(urllib.request.Request(url, data=body)) as answer:
        outputs = json.loads(answer.read())["outputs"]
    names = {output["name"] for output in outputs}
    missing = set(expected(endpoint)) - names
    return f"outputs {missing} are missing" if missing else None


def health(connection):
    if not (connection.is_server_live() and connection.is_server_ready()):
        return "not live or not ready"
    if not connection.is_model_ready("digits"):
        return "digits is not ready"
    index = {model["name"]: model["state"] for model in connection.get_model_repository_index()}
    if index != {name: "READY" for name in ENDPOINTS}:
        return f"the index is {index}"
    metadata = connection.get_model_metadata("digits")
    shape = metadata["inputs"][0]["shape"]
    return None if shape == [-1, 64] else f"digits takes {shape}"


async def through_kserve(server):
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", timeout=60))
    base = f"http://{server.http}"
    if not (await client.is_server_ready(base) and await client.is_model_ready(base, "digits")):
        return "not ready"
    pixels = digits()["pixels"][:10]
    for binary in (False, True):
        tensor = kserve.InferInput("pixels", list(pixels.shape), "FP32")
        tensor.set_data_from_numpy(pixels, binary_data=binary)
        request = kserve.InferRequest(model_name="digits", infer_inputs=[tensor])
        answer = await client.infer(base, request, model_name="digits")
        outputs = {output.name: output.as_numpy() for output in answer.outputs}
        for name, want in expected("digits").items():
            wrong = triton.difference(outputs[name], want[:10])
            if wrong:
                return f"{name}, binary {binary}: {wrong}"
    return None


async def through_kserve_grpc(server):
    """Here and not in over_grpc.py: KServe and tritonclient bring messages of the
    same names, of which one process takes only one."""
    client = kserve.InferenceGRPCClient(server.grpc)
    if not (await client.is_server_ready() and await client.is_model_ready("digits")):
        return "not ready"
    pixels = digits()["pixels"][:10]
    for binary in (False, True):
        sent = kserve.InferInput("pixels", list(pixels.shape), "FP32")
        sent.set_data_from_numpy(pixels, binary_data=binary)
        answer = await client.infer(kserve.InferRequest(model_name="digits", infer_inputs=[sent]))
        outputs = {output.name: output.as_numpy() for output in answer.outputs}
        for name, want in expected("digits").items():
            wrong = triton.difference(outputs[name], want[:10])
            if wrong:
                return f"{name}, binary {binary}: {wrong}"
    await client.close()
    return None


if __name__ == "__main__":
    sys.exit(main())
