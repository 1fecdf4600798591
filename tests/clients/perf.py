"""The real perf_analyzer, unmodified, against the demo's digits over HTTP and
gRPC: it finds the model, drives it, and reads the server's statistics.

Usage: perf.py PROGRAM LIBRARIES, which `cargo xtask test --only clients` installs."""

import csv
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from endpoints import wait_until_ready
from server import Server, Tally

# Patience with busy machines; a run measures for a few seconds.
RUN_SECONDS = 120

# Rows of a request, and how perf_analyzer is told to drive the server. As JSON
# it sends one row, whatever the shape says. Shared memory is the system's.
RUNS = {
    "HTTP": (2, ["-i", "http"]),
    "HTTP, JSON": (
        1,
        ["-i", "http", "--input-tensor-format", "json", "--output-tensor-format", "json"],
    ),
    "gRPC": (2, ["-i", "grpc"]),
    "gRPC, asynchronous": (2, ["-i", "grpc", "--async"]),
    "gRPC, streaming": (2, ["-i", "grpc", "--streaming"]),
    "HTTP, shared memory": (2, ["-i", "http", "--shared-memory", "system"]),
    "gRPC, shared memory": (2, ["-i", "grpc", "--shared-memory", "system"]),
}


def main():
    program, libraries = sys.argv[1:]
    tally = Tally()
    # The keys of perf_analyzer's shared memory begin with the names of tensors.
    with Server("demo", config='[shared_memory]\nprefix = "/"\n') as server:
        wait_until_ready(server, ["digits"])
        for name, (rows, arguments) in RUNS.items():
            command = [program, "--shape", f"pixels:{rows},64", *arguments]
            tally.check(f"perf_analyzer over {name}", drive(server, command, libraries, rows))
    return tally.finish()


def drive(server, command, libraries, rows):
    with tempfile.TemporaryDirectory() as folder:
        table = pathlib.Path(folder) / "table.csv"
        address = server.grpc if "grpc" in command else server.http
        command = [*command, "-m", "digits", "-u", address]
        # Any spread counts as stable: what is checked is that it works.
        command += ["--concurrency-range", "2", "-p", "500", "-r", "3", "-s", "900", "-f", table]
        run = subprocess.run(
            command,
            env={**os.environ, "LD_LIBRARY_PATH": libraries},
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
        )
        if run.returncode != 0:
            return f"status {run.returncode}: {run.stdout[-500:]}{run.stderr[-500:]}"
        with open(table) as file:
            points = list(csv.DictReader(file))
    return wrong(points, run.stdout, rows)


def wrong(points, printed, rows):
    """What is wrong with a run: nothing was answered, or the statistics of the
    server are not those of the requests."""
    if len(points) != 1 or float(points[0]["Inferences/Second"]) <= 0:
        return f"its table is {points}"
    found = re.findall(r"(Inference|Execution|Successful request) count: (\d+)", printed)
    counts = {what: int(count) for what, count in found}
    if len(counts) != 3 or min(counts.values()) <= 0:
        return f"it read no statistics: {printed[-800:]}"
    if counts["Inference"] != rows * counts["Successful request"]:
        return f"{rows} rows a request, but it read {counts}"
    return None


if __name__ == "__main__":
    sys.exit(main())
