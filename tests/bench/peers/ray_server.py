"""The benchmark's models on Ray Serve: `ray_server.py MODEL.onnx PORT`."""

import os
import sys
import time

import numpy as np
import onnxruntime
import ray
from ray import serve


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=100)
class AddSub:
    async def __call__(self, request):
        body = await request.json()
        a = np.asarray(body["a"], np.float32)
        b = np.asarray(body["b"], np.float32)
        return {"sum": (a + b).tolist(), "difference": (a - b).tolist()}


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=100)
class Digits:
    def __init__(self, path):
        options = onnxruntime.SessionOptions()
        # One thread is the fastest for a model this small.
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options)

    async def __call__(self, request):
        body = await request.json()
        outputs = self.session.run(None, {"pixels": np.asarray(body["x"], np.float32)})
        return {"outputs": [output.tolist() for output in outputs]}


if __name__ == "__main__":
    model, port = sys.argv[1], int(sys.argv[2])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(AddSub.bind(), name="addsub", route_prefix="/addsub")
    serve.run(Digits.bind(model), name="digits", route_prefix="/digits")
    while True:
        time.sleep(3600)
