"""The digits model for Triton's Python backend, onnxruntime inside. The file
named by MORTISE_BENCH_DIGITS is served."""

import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        # One thread is the fastest for a model this small.
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MORTISE_BENCH_DIGITS"], options)

    def execute(self, requests):
        inputs = [
            pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy() for request in requests
        ]
        # The requests of a batch run together, as they would with a backend in C++.
        labels, probabilities = self.session.run(
            ["label", "probabilities"], {"pixels": np.concatenate(inputs)}
        )
        answers, at = [], 0
        for rows in map(len, inputs):
            outputs = [
                pb_utils.Tensor("label", labels[at : at + rows]),
                pb_utils.Tensor("probabilities", probabilities[at : at + rows]),
            ]
            answers.append(pb_utils.InferenceResponse(output_tensors=outputs))
            at += rows
        return answers
