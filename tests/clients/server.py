"""A `mortise serve` process on free ports, and its admin API, for the checks."""

import json
import os
import pathlib
import subprocess
import tempfile
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Patience with the compiler, since the checks run on busy machines too.
CONFIG = "[plugins]\ncompile_timeout_ms = 120000\n"
BINARY = os.environ.get("MORTISE_BIN", str(ROOT / "target/release/mortise"))


class Refused(Exception):
    """The admin API said no."""


class Server:
    """`mortise serve`, or with another `command` what that starts."""

    def __init__(self, command="serve", config=""):
        self.command = command
        self.config = config

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="mortise-check-")
        self.store = pathlib.Path(self.folder.name) / "store"
        config = pathlib.Path(self.folder.name) / "mortise.toml"
        config.write_text(CONFIG + self.config)
        ports = ["--config", str(config), "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--admin-port", "0"]
        self.log = open(pathlib.Path(self.folder.name) / "log", "w+")
        self.process = subprocess.Popen(
            [BINARY, self.command, "--store", str(self.store), *ports],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        for line in self.process.stdout:
            if '"ready"' in line:
                ready = json.loads(line)
                self.http, self.grpc, self.admin = ready["http"], ready["grpc"], ready["admin"]
                self.token = (self.store / "admin.token").read_text().strip()
                return self
        self.log.seek(0)
        raise RuntimeError(f"the server did not get ready:\n{self.log.read()}")

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()
        self.folder.cleanup()

    def call(self, method, path, body=b""):
        request = urllib.request.Request(f"http://{self.admin}{path}", data=body, method=method)
        request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode()) from None

    def upload(self, name, data):
        uploaded = json.loads(self.call("POST", "/v1/uploads", data))
        return {"name": name, "upload": uploaded["upload"]}

    def deploy(self, name, model, transforms=(), plugin="onnx"):
        """Deploys the bytes of a model; `transforms` are (plugin, configuration)."""
        body = {
            "plugin": {"name": plugin},
            "assets": [self.upload("model.onnx", model)],
            "transforms": [
                {"plugin": {"name": transform}, "config": config} for transform, config in transforms
            ],
        }
        lines = self.call("POST", f"/v1/endpoints/{name}/deploy", json.dumps(body).encode())
        last = json.loads(lines.splitlines()[-1])
        if last["event"] != "deployed":
            raise Refused(last["error"])
        return last["deployed"]

    def undeploy(self, name):
        self.call("DELETE", f"/v1/endpoints/{name}")


class Tally:
    """Counts checks, and prints each that fails."""

    def __init__(self):
        self.passed = self.failed = 0

    def check(self, name, problem):
        if problem:
            self.failed += 1
            print(f"FAILED {name}: {problem}", flush=True)
        else:
            self.passed += 1

    def finish(self):
        print(f"{self.passed} passed, {self.failed} failed")
        return self.failed > 0
