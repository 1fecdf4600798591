"""The demo endpoints over gRPC, through real clients as they are: tritonclient
with its asyncio, streaming and shared memory, and gRPC's health and reflection
clients."""

import asyncio
import os
import queue
import sys

import grpc
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shared_memory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

import triton
from endpoints import BATCH, ENDPOINTS, digits, expected, wait_until_ready
from server import Server, Tally

# What keys of shared memory begin with. Tests run beside each other.
PREFIX = f"/mortise-check-{os.getpid()}-"

# Answers of a stream come within this.
STREAM_SECONDS = 60


def main():
    tally = Tally()
    with Server("demo", config=f'[shared_memory]\nprefix = "{PREFIX}"\n') as server:
        wait_until_ready(server, ENDPOINTS)
        client = triton_grpc.InferenceServerClient(server.grpc)
        for endpoint, inputs in ENDPOINTS.items():
            tally.check(f"{endpoint}, raw contents", all_rows(client, endpoint, inputs()))
        for name, check in CHECKS.items():
            tally.check(name, check(server, client))
        tally.check("asyncio", asyncio.run(through_asyncio(server)))
    return tally.finish()


def tensor(client, name, values):
    """An input of one of tritonclient's two protocols."""
    made = client.InferInput(name, list(values.shape), "FP32")
    made.set_data_from_numpy(values)
    return made


def all_rows(client, endpoint, inputs):
    rows = len(next(iter(inputs.values())))
    answers = []
    for start in range(0, rows, BATCH):
        batch = [
            tensor(triton_grpc, name, values[start : start + BATCH])
            for name, values in inputs.items()
        ]
        answers.append(client.infer(endpoint, batch))
    return wrong(endpoint, answers)


def wrong(endpoint, answers, rows=None):
    """What differs from what onnxruntime gave for the first rows, or None."""
    for name, want in expected(endpoint).items():
        got = np.concatenate([answer.as_numpy(name) for answer in answers])
        problem = triton.difference(got, want[:rows])
        if problem:
            return f"{name}: {problem}"
    return None


def typed_contents(server, _):
    pixels = digits()["pixels"][:3]
    request = service_pb2.ModelInferRequest(model_name="digits", id="7")
    sent = request.inputs.add(name="pixels", datatype="FP32", shape=pixels.shape)
    sent.contents.fp32_contents.extend(pixels.ravel().tolist())
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(request)
        request.raw_input_contents.append(pixels.tobytes())
        try:
            stub.ModelInfer(request)
        except grpc.RpcError as error:
            code = error.code()
        else:
            code = "no error"
    if code != grpc.StatusCode.INVALID_ARGUMENT:
        return f"raw and typed contents together gave {code}"
    if answer.id != "7" or {"version", "variant"} - set(answer.parameters):
        return f"id {answer.id}, parameters {answer.parameters}"
    return wrong("digits", [triton_grpc.InferResult(answer)], 3)


def compressed(_, client):
    pixels = digits()["pixels"][:BATCH]
    for algorithm in ("gzip", "deflate"):
        sent = [tensor(triton_grpc, "pixels", pixels)]
        answer = client.infer("digits", sent, compression_algorithm=algorithm)
        problem = wrong("digits", [answer], BATCH)
        if problem:
            return f"{algorithm}: {problem}"
    return None


def streaming(_, client):
    """Answers come in order; a request that fails does not end the stream."""
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    pixels = digits()["pixels"]
    for index in range(50):
        model = "none" if index == 20 else "digits"
        sent = [tensor(triton_grpc, "pixels", pixels[index : index + 1])]
        client.async_stream_infer(model, sent, request_id=str(index))
    got = [answers.get(timeout=STREAM_SECONDS) for _ in range(50)]
    client.stop_stream()
    failed = [index for index, (_, error) in enumerate(got) if error is not None]
    if failed != [20] or "none" not in str(got[20][1]):
        return f"requests {failed} failed"
    ids = [result.get_response().id for result, error in got if error is None]
    if ids != [str(index) for index in range(50) if index != 20]:
        return f"answers came as {ids}"
    for index, (result, error) in enumerate(got):
        if error is None and result.as_numpy("label") != expected("digits")["label"][index]:
            return f"answer {index} is another's"
    return None


def through_shared_memory(server, client):
    """Tensors in and out of shared memory, over both protocols."""
    pixels = digits()["pixels"][:10]
    want = expected("digits")["probabilities"][:10]
    given = shared_memory.create_shared_memory_region("given", PREFIX + "in", pixels.nbytes)
    taken = shared_memory.create_shared_memory_region("taken", PREFIX + "out", want.nbytes)
    try:
        shared_memory.set_shared_memory_region(given, [pixels])
        over_http = triton_http.InferenceServerClient(server.http)
        for module, connection in ((triton_grpc, client), (triton_http, over_http)):
            shared_memory.set_shared_memory_region(taken, [np.zeros_like(want)])
            connection.register_system_shared_memory("given", PREFIX + "in", pixels.nbytes)
            connection.register_system_shared_memory("taken", PREFIX + "out", want.nbytes)
            sent = module.InferInput("pixels", list(pixels.shape), "FP32")
            sent.set_shared_memory("given", pixels.nbytes)
            asked = module.InferRequestedOutput("probabilities")
            asked.set_shared_memory("taken", want.nbytes)
            connection.infer("digits", [sent], outputs=[asked])
            got = shared_memory.get_contents_as_numpy(taken, np.float32, want.shape)
            problem = triton.difference(got, want)
            connection.unregister_system_shared_memory()
            if problem:
                return f"{module.__name__}: {problem}"
        try:
            client.register_system_shared_memory("other", "/other", 1)
        except InferenceServerException as error:
            return None if "PERMISSION_DENIED" in error.status() else str(error)
        return "a key outside the prefix was taken"
    finally:
        shared_memory.destroy_shared_memory_region(given)
        shared_memory.destroy_shared_memory_region(taken)


def statistics(server, client):
    """Both protocols count together, and tell the same."""
    over_http = triton_http.InferenceServerClient(server.http)

    def counts():
        told = client.get_inference_statistics("digits", as_json=True)["model_stats"][0]
        stats = over_http.get_inference_statistics("digits")["model_stats"][0]
        same = int(told["inference_stats"]["success"]["count"])
        if same != stats["inference_stats"]["success"]["count"]:
            raise RuntimeError(f"gRPC tells {told}, HTTP tells {stats}")
        return same, stats["inference_count"]

    before = counts()
    client.infer("digits", [tensor(triton_grpc, "pixels", digits()["pixels"][:4])])
    over_http.infer("digits", [tensor(triton_http, "pixels", digits()["pixels"][:3])])
    after = counts()
    grown = (after[0] - before[0], after[1] - before[1])
    return None if grown == (2, 7) else f"two requests of 7 rows counted as {grown}"


def descriptions(server, client):
    over_http = triton_http.InferenceServerClient(server.http)
    if not (client.is_server_live() and client.is_server_ready()):
        return "not live or not ready"
    if not client.is_model_ready("digits") or client.is_model_ready("none"):
        return "models are not ready as they are"
    extensions = client.get_server_metadata(as_json=True)["extensions"]
    if extensions != over_http.get_server_metadata()["extensions"]:
        return f"the extensions are {extensions}"
    metadata = client.get_model_metadata("digits", as_json=True)
    if metadata["inputs"][0]["shape"] != ["-1", "64"]:
        return f"the metadata is {metadata}"
    config = client.get_model_config("digits", as_json=True)["config"]
    if config["output"][1]["dims"] != ["-1", "10"]:
        return f"the configuration is {config}"
    index = client.get_model_repository_index(as_json=True)["models"]
    states = {model["name"]: model["state"] for model in index}
    return None if states == dict.fromkeys(ENDPOINTS, "READY") else f"the index is {index}"


def settings(server, client):
    """Told to everybody, and not changed by anybody unless that is permitted."""
    over_http = triton_http.InferenceServerClient(server.http)
    told = client.get_log_settings(as_json=True)["settings"]["log_info"]
    if not told["bool_param"] or not over_http.get_log_settings()["log_info"]:
        return f"log_info is {told}"
    level = client.get_trace_settings("digits", as_json=True)["settings"]["trace_level"]
    if level["value"] != ["OFF"] or over_http.get_trace_settings()["trace_level"] != ["OFF"]:
        return f"trace_level is {level}"
    for change in (
        lambda: client.update_log_settings({"log_verbose_level": 1}),
        lambda: client.update_trace_settings(settings={"trace_rate": "5"}),
        lambda: client.unload_model("digits"),
    ):
        try:
            change()
            return "something was changed"
        except InferenceServerException as error:
            if "PERMISSION_DENIED" not in error.status():
                return str(error)
    return None


def health_and_reflection(server, _):
    with grpc.insecure_channel(server.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "inference.GRPCInferenceService", "digits"):
            status = stub.Check(health_pb2.HealthCheckRequest(service=service)).status
            if status != health_pb2.HealthCheckResponse.SERVING:
                return f"{service!r} is {status}"
        watched = stub.Watch(health_pb2.HealthCheckRequest(service="none"))
        if next(watched).status != health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            return "an unknown service is known"
        watched.cancel()
        services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    missing = {
        "grpc.health.v1.Health",
        "inference.GRPCInferenceService",
        "inference.model_repository.ModelRepositoryService",
    } - services
    return f"{missing} is not reflected" if missing else None


async def through_asyncio(server):
    pixels = digits()["pixels"]
    async with triton_aio.InferenceServerClient(server.grpc) as client:
        calls = [
            client.infer("digits", [tensor(triton_grpc, "pixels", pixels[index : index + 1])])
            for index in range(64)
        ]
        problem = wrong("digits", await asyncio.gather(*calls), 64)
        if problem:
            return problem

        async def requests():
            for index in range(20):
                sent = [tensor(triton_grpc, "pixels", pixels[index : index + 1])]
                yield {"model_name": "digits", "inputs": sent, "request_id": str(index)}

        answers = [answer async for answer, error in client.stream_infer(requests())]
    return wrong("digits", answers, 20)


CHECKS = {
    "typed contents": typed_contents,
    "compression": compressed,
    "streaming": streaming,
    "shared memory": through_shared_memory,
    "statistics": statistics,
    "metadata, configuration and index": descriptions,
    "log and trace settings": settings,
    "health and reflection": health_and_reflection,
}


if __name__ == "__main__":
    sys.exit(main())
