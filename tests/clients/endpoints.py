"""The demo endpoints: their data, and what onnxruntime gave for it."""

import time
import urllib.error
import urllib.request

import numpy as np
from sklearn import datasets

from server import ROOT

# Deploying all three takes a few seconds on a busy machine.
START_SECONDS = 60

# Rows of one request. Not a divisor of the sizes, so that the last is smaller.
BATCH = 100


def digits():
    return {"pixels": datasets.load_digits().data.astype(np.float32)}


def breast_cancer():
    data = datasets.load_breast_cancer()
    columns = data.data.astype(np.float32)
    return {str(name): columns[:, [index]] for index, name in enumerate(data.feature_names)}


def wine():
    return {"features": datasets.load_wine().data.astype(np.float32)}


ENDPOINTS = {"digits": digits, "breast-cancer": breast_cancer, "wine": wine}
ROWS = {"digits": 1797, "breast-cancer": 569, "wine": 178}


def wait_until_ready(server, endpoints):
    end = time.monotonic() + START_SECONDS
    for endpoint in endpoints:
        while not is_ready(server, endpoint):
            if time.monotonic() > end:
                raise RuntimeError(f"{endpoint} is not ready after {START_SECONDS} s")
            time.sleep(0.1)


def is_ready(server, endpoint):
    try:
        with urllib.request.urlopen(f"http://{server.http}/v2/models/{endpoint}/ready") as answer:
            return answer.status == 200
    except urllib.error.HTTPError:
        return False


def expected(endpoint):
    folder = ROOT / "plugins/demo" / endpoint / "expected"
    return {file.stem: np.load(file) for file in folder.glob("*.npy")}
