"""A model on LitServe: `litserve_server.py MODEL PORT`, where MODEL is an ONNX
file (onnxruntime inside) or `addsub`."""

import os
import sys

import litserve
import numpy as np
import onnxruntime


class Digits(litserve.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        # One thread is the fastest for a model this small.
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options)
        self.name = self.session.get_inputs()[0].name

    def decode_request(self, request):
        return np.asarray(request["x"], np.float32)

    def predict(self, x):
        return self.session.run(None, {self.name: x})

    def encode_response(self, outputs):
        return {"outputs": [output.tolist() for output in outputs]}


class AddSub(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        return np.asarray(request["a"], np.float32), np.asarray(request["b"], np.float32)

    def predict(self, pair):
        a, b = pair
        return a + b, a - b

    def encode_response(self, outputs):
        return {"sum": outputs[0].tolist(), "difference": outputs[1].tolist()}


if __name__ == "__main__":
    api = AddSub() if sys.argv[1] == "addsub" else Digits()
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=os.cpu_count(), timeout=30
    )
    server.run(port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
