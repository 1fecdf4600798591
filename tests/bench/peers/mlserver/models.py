"""The benchmark's models as MLServer runtimes."""

import os

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class AddSub(MLModel):
    async def load(self):
        return True

    async def predict(self, payload):
        a, b = (NumpyCodec.decode_input(tensor) for tensor in payload.inputs)
        outputs = {"OUTPUT0": a + b, "OUTPUT1": a - b}
        return answer(self, outputs)


class Digits(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        # One thread is the fastest for a model this small.
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MORTISE_BENCH_DIGITS"], options)
        return True

    async def predict(self, payload):
        pixels = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        names = ["label", "probabilities"]
        return answer(self, dict(zip(names, self.session.run(names, {"pixels": pixels}))))


def answer(model, outputs):
    encoded = [NumpyCodec.encode_output(name, value) for name, value in outputs.items()]
    return InferenceResponse(model_name=model.name, model_version=model.version, outputs=encoded)
