"""Puts torch's figures beside ours: reads our JSON object, prints the joint one.

torch runs on the same card with TF32 off, so that f32 means f32. Weights of 8
and 4 bits have no counterpart there and are compared with its f16.
"""

import json
import subprocess
import sys
import time


def commit():
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def seconds(torch, run, repeats):
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def measure(torch, row):
    m, n, k = row["shape"]
    dtype = torch.float32 if row["name"].endswith("f32") else torch.float16
    a = torch.randn(m, k, device="cuda", dtype=dtype)
    b = torch.randn(k, n, device="cuda", dtype=dtype)
    took = seconds(torch, lambda: a @ b, 20)
    if row["unit"] == "GB/s":
        return b.numel() * b.element_size() / took / 1e9
    return 2.0 * m * n * k / took / 1e9


def main():
    ours = json.loads(sys.stdin.readlines()[-1])
    ours["commit"] = commit()
    try:
        import torch

        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no GPU")
        torch.backends.cuda.matmul.allow_tf32 = False
        ours["versions"] = {"torch": torch.__version__, "cuda": torch.version.cuda}
        for row in ours["kernels"]:
            row["torch"] = measure(torch, row)
            row["ratio"] = row["ours"] / row["torch"]
    except (ImportError, RuntimeError) as error:
        ours["versions"] = {"torch": None}
        ours["reason"] = f"torch was not measured: {error}"
    for row in ours["kernels"]:
        shape = " x ".join(map(str, row["shape"]))
        torch_text = "-" if row["torch"] is None else f"{row['torch']:.1f}"
        print(f"{row['name']:<14} {shape:>20} {row['ours']:>12.1f} {torch_text:>12} {row['unit']}")
    print(json.dumps(ours))


main()
