"""Every exported model, deployed and asked through the server, answers as
onnxruntime does: `models.py [DIRECTORY [NAME...]]`."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np

import triton
from server import ROOT, Refused, Server, Tally

# The least number of models that have to be compared.
LEAST = 60

# The coupling of pairwise probabilities is an iteration in float32 with a coarse
# end condition, which enlarges the rounding of cubed scores.
TOLERANCES = {"svc_poly_proba": 1e-4}


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else exported()
    cases = json.loads((folder / "manifest.json").read_text())
    cases = [case for case in cases if not sys.argv[2:] or case["name"] in sys.argv[2:]]
    tally = Tally()
    if len(cases) < LEAST and not sys.argv[2:]:
        tally.check("the number of models", f"{len(cases)}, expected {LEAST}")
    with Server() as server:
        connection = triton.client(server)
        for case in cases:
            tally.check(case["name"], problem(server, connection, folder, case))
    return tally.finish()


def exported():
    """The folder of the exported models, made again when the scripts changed."""
    scripts = sorted((ROOT / "tests/models").glob("*.py"))
    digest = hashlib.sha256(b"".join(script.read_bytes() for script in scripts)).hexdigest()
    folder = ROOT / "target/models" / digest[:16]
    if not (folder / "manifest.json").exists():
        subprocess.run([sys.executable, ROOT / "tests/models/export.py", folder], check=True)
    return folder


def problem(server, connection, folder, case):
    name = case["name"]
    endpoint = "".join(letter if letter.isalnum() else "-" for letter in name)
    archive = np.load(folder / f"{name}.npz")
    inputs = {key: archive[f"in:{key}"] for key in case["inputs"]}
    try:
        server.deploy(endpoint, (folder / f"{name}.onnx").read_bytes())
        outputs = triton.infer(connection, endpoint, inputs, binary=True)
        server.undeploy(endpoint)
    except Refused as error:
        return f"refused: {error}"
    except Exception as error:  # A client error is a finding; the other models go on.
        return f"{type(error).__name__}: {error}"
    for key in case["outputs"]:
        tolerance = TOLERANCES.get(name, 1e-5)
        wrong = triton.difference(outputs.get(key), archive[f"out:{key}"], tolerance)
        if wrong:
            return f"output {key}: {wrong}"
    return None


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    sys.exit(main())
