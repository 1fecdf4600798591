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
    # Long enough for the card to have its full clock, as on our side.
    start = time.perf_counter()
    while time.perf_counter() - start < 0.3:
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


def resnet(torch):
    """ResNet-50 with its normalisation folded into the convolutions."""
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self, inside, width, stride):
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(inside, width, 1), nn.ReLU(),
                nn.Conv2d(width, width, 3, stride, 1), nn.ReLU(),
                nn.Conv2d(width, width * 4, 1),
            )
            same = inside == width * 4
            self.skip = nn.Identity() if same else nn.Conv2d(inside, width * 4, 1, stride)

        def forward(self, x):
            return torch.relu(self.body(x) + self.skip(x))

    parts = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, blocks in enumerate([3, 4, 6, 3]):
        for block in range(blocks):
            width = 64 << stage
            parts.append(Bottleneck(channels, width, 2 if block == 0 and stage else 1))
            channels = width * 4
    parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000)]
    return nn.Sequential(*parts).cuda().eval()


def bert(torch, layers):
    """BERT-base without its pooler, at 128 tokens."""
    from torch import nn
    from torch.nn.functional import scaled_dot_product_attention

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.ModuleList(nn.Linear(768, 768) for _ in range(3))
            self.out = nn.Linear(768, 768)
            self.norms = nn.ModuleList(nn.LayerNorm(768) for _ in range(2))
            self.wide = nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768))

        def forward(self, x):
            batch, tokens, width = x.shape
            heads = [part(x).view(batch, tokens, 12, 64).transpose(1, 2) for part in self.qkv]
            attended = scaled_dot_product_attention(*heads).transpose(1, 2)
            x = self.norms[0](x + self.out(attended.reshape(batch, tokens, width)))
            return self.norms[1](x + self.wide(x))

    class Bert(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(30522, 768)
            self.places = nn.Parameter(torch.randn(1, 128, 768))
            self.norm = nn.LayerNorm(768)
            self.layers = nn.Sequential(*(Layer() for _ in range(layers)))

        def forward(self, ids):
            return self.layers(self.norm(self.words(ids) + self.places))

    return Bert().cuda().eval()


def measure_models(torch, rows):
    """Milliseconds from a tensor in host memory to the answer there."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    known = {}
    for row in rows:
        image, name = row["image"], row["name"]
        if name not in known:
            known[name] = resnet(torch) if name == "resnet-50" else bert(torch, row["layers"])
        if name == "resnet-50":
            x = torch.rand(row["batch"], 3, image, image)
        else:
            x = torch.randint(0, 30522, (row["batch"], 128))
        with torch.inference_mode():
            took = seconds(torch, lambda: known[name](x.cuda()).cpu(), 50)
        row["torch_ms"] = took * 1e3
        row["ratio"] = row["ours_ms"] / row["torch_ms"]


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
        measure_models(torch, ours["models"])
    except (ImportError, RuntimeError) as error:
        ours["versions"] = {"torch": None}
        ours["reason"] = f"torch was not measured: {error}"
    for row in ours["kernels"]:
        shape = " x ".join(map(str, row["shape"]))
        torch_text = "-" if row["torch"] is None else f"{row['torch']:.1f}"
        print(f"{row['name']:<14} {shape:>20} {row['ours']:>12.1f} {torch_text:>12} {row['unit']}")
    for row in ours["models"]:
        torch_text = "-" if row["torch_ms"] is None else f"{row['torch_ms']:.3f}"
        print(f"{row['name']:<14} {row['batch']:>20} {row['ours_ms']:>12.3f} {torch_text:>12} ms")
    print(json.dumps(ours))


main()
