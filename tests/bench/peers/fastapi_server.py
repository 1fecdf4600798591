"""Digits on FastAPI and uvicorn, onnxruntime inside: `fastapi_server.py MODEL PORT`."""

import os
import sys

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Request(BaseModel):
    x: list[list[float]]


def make_app():
    options = onnxruntime.SessionOptions()
    # One thread is the fastest for a model this small.
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(os.environ["MODEL"], options)
    name = session.get_inputs()[0].name
    app = FastAPI()

    @app.post("/predict")
    async def predict(request: Request):
        outputs = session.run(None, {name: np.asarray(request.x, np.float32)})
        return {"outputs": [output.tolist() for output in outputs]}

    return app


if __name__ == "__main__":
    os.environ["MODEL"] = sys.argv[1]
    sys.path.insert(0, os.path.dirname(__file__))
    uvicorn.run(
        "fastapi_server:make_app",
        factory=True,
        port=int(sys.argv[2]),
        workers=os.cpu_count(),
        log_level="warning",
    )
