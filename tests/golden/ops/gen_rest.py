#!/usr/bin/env python3
"""Writes rest-*.jsonl: the operators that few models use. The answers are
onnxruntime's, or those of ONNX's reference implementation for operators that
it lacks or answers in another way than the standard says.

Needs numpy, onnx and onnxruntime:

    python tests/golden/ops/gen_rest.py
"""

import numpy as np
from onnx import TensorProto, helper

from cases import case, f32, ints, of, rng, write

TRAINING = "ai.onnx.preview.training"
PREVIEW = "ai.onnx.preview"


def losses():
    for shape in ((5, 3), (2, 3, 7), (2, 5, 1, 33), (1, 2, 2, 2, 3)):
        target = ints(0, shape[1], shape[0], *shape[2:])
        weights = abs(f32(shape[1])) + np.float32(0.1)
        for reduction in ("none", "sum", "mean"):
            case("NegativeLogLikelihoodLoss", [f32(*shape), target], opset=13, reduction=reduction)
            case("SoftmaxCrossEntropyLoss", [f32(*shape), target, weights], 2, opset=13,
                 reduction=reduction, tol=2e-5)
            case("NegativeLogLikelihoodLoss", [f32(*shape), target.astype(np.int32), weights],
                 opset=13, reduction=reduction, ignore_index=1)
    case("SoftmaxCrossEntropyLoss", [f32(4, 3).astype(np.float64), ints(0, 3, 4)], opset=13,
         ignore_index=2, reference=True)
    case("NegativeLogLikelihoodLoss", [f32(4, 3), np.array([0, 1, 3, 0])], opset=13, error=True)


def sampling():
    image = f32(2, 3, 5, 7)
    points = (f32(2, 4, 3, 2) * 1.2).astype(np.float32)
    for mode in ("nearest", "linear", "cubic"):
        for padding in ("zeros", "border", "reflection"):
            for align in (0, 1):
                case("GridSample", [image, points], opset=20, mode=mode, padding_mode=padding,
                     align_corners=align, tol=1e-4)
    for mode in ("nearest", "linear"):
        case("GridSample", [f32(1, 2, 3, 4, 5), (f32(1, 2, 3, 3, 3) * 1.2).astype(np.float32)],
             opset=20, mode=mode, tol=1e-4)
    case("GridSample", [image, points], opset=16, mode="bilinear", tol=1e-4)
    case("GridSample", [image, points], opset=16, mode="bicubic", tol=1e-4)
    case("GridSample", [image, f32(2, 4, 3, 3)], opset=20, error=True)
    for align in (0, 1):
        case("AffineGrid", [f32(2, 2, 3), np.array([2, 1, 3, 5])], opset=20, align_corners=align)
        case("AffineGrid", [f32(1, 3, 4), np.array([1, 1, 2, 3, 4])], opset=20, align_corners=align)
    rois = np.array([[0.5, 0.5, 4, 3], [1, 0, 6, 4.5], [3, 3, 2.5, 2.5], [-3, -3, 9, 9]], np.float32)
    batches = np.array([0, 1, 0, 1])
    for mode in ("avg", "max"):
        for ratio in (0, 2, 3):
            for opset in (10, 16):
                case("RoiAlign", [image, rois, batches], opset=opset, mode=mode, output_height=2,
                     output_width=3, sampling_ratio=ratio, spatial_scale=0.8)
    case("RoiAlign", [image, rois, np.array([0, 1, 0, 2])], opset=16, error=True)


def folding():
    for sizes in ([5, 5], [2, 9], [4, 6], [7, 1], [9, 9]):
        case("CenterCropPad", [of("int32", 5, 6), np.array(sizes)], opset=18)
    case("CenterCropPad", [f32(2, 3, 5), np.array([4, 8])], opset=18, axes=[-1, 0])
    for block, image, extra in (
            ([2, 3], [4, 6], {"strides": [2, 3]}), ([2, 2], [5, 4], {"dilations": [2, 1]}),
            ([3, 3], [5, 6], {"pads": [1, 0, 1, 2], "strides": [2, 2]}), ([3], [8], {})):
        rank = len(block)
        pads, strides = extra.get("pads", [0] * 2 * rank), extra.get("strides", [1] * rank)
        dilations = extra.get("dilations", [1] * rank)
        count = np.prod([(image[i] + pads[i] + pads[rank + i] - (block[i] - 1) * dilations[i] - 1)
                         // strides[i] + 1 for i in range(rank)])
        case("Col2Im", [f32(2, 2 * np.prod(block), count), np.array(image), np.array(block)],
             opset=18, **extra)
    case("Col2Im", [f32(1, 8, 3), np.array([4, 4]), np.array([2, 2])], opset=18, error=True)
    pooled = f32(1, 2, 2, 2)
    where = np.array([[[[5, 7], [13, 15]], [[21, 18], [24, 31]]]])
    case("MaxUnpool", [pooled, where], opset=11, kernel_shape=[2, 2], strides=[2, 2])
    case("MaxUnpool", [pooled, where + 100], opset=11, kernel_shape=[2, 2], strides=[2, 2], error=True)
    for groups, offsets in ((1, 1), (2, 1), (1, 2), (2, 2)):
        x, w = f32(2, 4, 6, 5), f32(2, 4 // groups, 3, 2)
        moved = (f32(2, offsets * 12, 4, 4) * 0.7).astype(np.float32)
        case("DeformConv", [x, w, moved, f32(2), abs(f32(2, offsets * 6, 4, 4))], opset=19,
             group=groups, offset_group=offsets, reference=True, tol=1e-4)
    case("DeformConv", [f32(1, 1, 5, 5), f32(1, 1, 3, 3), f32(1, 18, 3, 3)], opset=19, pads=[1, 1, 1, 1],
         strides=[2, 2], reference=True, tol=1e-4)


def signals():
    for size in (1, 2, 7, 8, 33, 129):
        real, pair = f32(2, size, 1), f32(2, size, 2)
        for x in (real, pair):
            case("DFT", [x], opset=17, axis=1, reference=True, tol=5e-5)
        case("DFT", [pair], opset=17, axis=1, inverse=1, reference=True)
        case("DFT", [real], opset=17, axis=1, onesided=1, reference=True, tol=5e-5)
    for length in (3, 9):
        case("DFT", [f32(1, 6, 4, 1), np.array(length), np.array(2)], opset=20, tol=1e-4)
    case("DFT", [f32(3, 5, 2), np.array(8), np.array(-2)], opset=20, inverse=1, onesided=1,
         reference=True)
    case("DFT", [f32(3, 5, 2), None, np.array(-1)], opset=20, error=True)
    x = f32(2, 33, 1)
    for step, size in ((4, 8), (5, 7), (40, 33)):
        window = abs(f32(size))
        for onesided in (0, 1):
            case("STFT", [x, np.array(step), window, np.array(size)], opset=17, onesided=onesided, tol=2e-4)
    case("STFT", [x, np.array(4), None, np.array(16)], opset=17, tol=2e-4)
    case("STFT", [x, np.array(0), None, np.array(16)], opset=17, error=True)
    for op in ("HannWindow", "HammingWindow", "BlackmanWindow"):
        for size in (1, 2, 9, 10):
            case(op, [np.array(size)], opset=17, periodic=1)
            if size > 1:
                case(op, [np.array(size)], opset=17, periodic=0, output_datatype=TensorProto.DOUBLE,
                     tol=2e-6)
    for bands, length in ((8, 64), (20, 512), (5, 33)):
        edges = [np.array(e, np.float32) for e in (20.0, 3800.0)]
        case("MelWeightMatrix", [np.array(bands), np.array(length), np.array(8000), *edges], opset=17)


def positions():
    for heads, size in ((1, 4), (3, 8)):
        for interleaved in (0, 1):
            cache = [f32(9, size // 2), f32(9, size // 2)]
            at = ints(0, 9, 2, 5)
            case("RotaryEmbedding", [f32(2, heads, 5, size), *cache, at], opset=23,
                 interleaved=interleaved, reference=True)
            case("RotaryEmbedding", [f32(2, 5, heads * size), *cache, at], opset=23, num_heads=heads,
                 interleaved=interleaved, reference=True)
            half = [f32(2, 5, 1), f32(2, 5, 1)]
            case("RotaryEmbedding", [f32(2, heads, 5, size), *half], opset=23, rotary_embedding_dim=2,
                 interleaved=interleaved, reference=True)
    case("RotaryEmbedding", [f32(1, 1, 2, 4), *cache[:2], np.array([[0, 9]])], opset=23, error=True)
    case("TensorScatter", [f32(2, 3, 6, 4), f32(2, 3, 2, 4), np.array([1, 4])], opset=24, reference=True)
    case("TensorScatter", [of("int8", 2, 5, 3), of("int8", 2, 4, 3), np.array([4, 0])], opset=24,
         mode="circular", axis=1, reference=True)
    case("TensorScatter", [f32(2, 3, 6, 4), f32(2, 3, 2, 4), np.array([1, 5])], opset=24, error=True)


def attention():
    def both(q, k, v, outputs=1, mask=None, past=(None, None), lengths=None, opset=23, **attributes):
        case("Attention", [q, k, v, mask, *past, lengths], outputs, opset=opset, reference=True,
             tol=2e-5, **attributes)

    q, k, v = f32(2, 4, 3, 8), f32(2, 2, 5, 8), f32(2, 2, 5, 6)
    past = (f32(2, 2, 3, 8), f32(2, 2, 3, 6))
    for causal in (0, 1):
        both(q, k, v, 3, past=past, is_causal=causal)
        both(q, k, v, 3, f32(3, 8), past, is_causal=causal, softcap=1.5)
        both(q, k, v, 4, f32(2, 1, 3, 8), past, is_causal=causal, qk_matmul_output_mode=0)
        for mode in (1, 2, 3):
            both(q, k, v, 4, f32(2, 1, 3, 8), past, is_causal=causal, qk_matmul_output_mode=mode,
                 softcap=2.0)
    rows = [f32(2, n, w) for n, w in ((3, 32), (5, 16), (5, 12))]
    both(*rows, 3, past=past, q_num_heads=4, kv_num_heads=2)
    both(*rows, 4, q_num_heads=4, kv_num_heads=2, scale=0.3)
    both(q, k, v, 1, of("bool", 3, 5) | np.eye(3, 5, dtype=bool), opset=24)
    both(q, k, v, 1, f32(2, 1, 3, 4), lengths=np.array([3, 4]), opset=24)
    both(q, k, v, 1, lengths=np.array([5, 1]), opset=24)

    for rule in ("linear", "gated", "delta", "gated_delta"):
        batch, length, heads, groups, key, value = 2, 5, 2, 2, 3, 4
        decay = -abs(f32(batch, length, heads)) if "gated" in rule else None
        beta = abs(f32(batch, length, 1)) if "delta" in rule else None
        state = f32(batch, heads, key, value)
        parts = [f32(batch, length, heads * groups * key), f32(batch, length, heads * key),
                 f32(batch, length, heads * value)]
        for past in (None, state):
            case("LinearAttention", [*parts, past, decay, beta], 2, opset=27, update_rule=rule,
                 q_num_heads=heads * groups, kv_num_heads=heads, reference=True)
    for activation in ("none", "silu"):
        for taps in (1, 4):
            case("CausalConvWithState", [f32(2, 3, 5), f32(3, 1, taps), f32(3), f32(2, 3, taps - 1)], 2,
                 opset=27, activation=activation, reference=True)
    case("CausalConvWithState", [f32(2, 3, 2), f32(3, 1, 4)], 2, opset=27, reference=True)

    graph = lambda op: helper.make_graph(
        [helper.make_node(op, ["in"], ["out"])], "mod",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)])
    case("FlexAttention", [q, f32(2, 2, 5, 8), v], domain=PREVIEW, opset=1, reference=True, tol=2e-5)
    case("FlexAttention", [q, f32(2, 2, 5, 8), v], domain=PREVIEW, opset=1, score_mod=graph("Tanh"),
         prob_mod=graph("Sqrt"), scale=0.7, reference=True, tol=2e-5)


def numbers():
    for size in (1, 2, 3, 5):
        case("Det", [f32(2, 3, size, size)], opset=11)
    case("Det", [np.array([[0, 1], [1, 0]], np.float32)], opset=11)
    case("Det", [np.ones((3, 3), np.float32)], opset=11)
    case("Det", [f32(2, 3)], opset=11, error=True)
    for op, since in (("CumSum", 14), ("CumProd", 26)):
        for dtype in ("float32", "float64", "int32", "int64"):
            for exclusive, reverse in ((0, 0), (0, 1), (1, 0), (1, 1)):
                case(op, [of(dtype, 2, 3, 4), np.array(1 - 2 * reverse)], opset=since,
                     exclusive=exclusive, reverse=reverse, reference=op == "CumProd")
    for dtype, to in (("float32", TensorProto.INT32), ("int16", TensorProto.FLOAT16),
                      ("uint32", TensorProto.FLOAT), ("uint8", TensorProto.INT8)):
        case("BitCast", [of(dtype, 3, 5)], opset=26, to=to, reference=True)
    case("BitCast", [f32(3)], opset=26, to=TensorProto.INT64, error=True)
    case("BatchNormalization", [f32(3, 2, 5), f32(2), f32(2), f32(2), abs(f32(2))], 3, opset=15,
         training_mode=1, momentum=0.7, reference=True)
    scale = np.array([0.1, 0.25], np.float16)
    x = (f32(2, 5) * 10).astype(np.float16)
    case("QuantizeLinear", [x, scale, np.array([3, 100], np.uint8)], opset=21, axis=0, reference=True)
    case("DequantizeLinear", [of("int8", 2, 5), scale, np.array([3, -7], np.int8)], opset=21, axis=0,
         reference=True)
    case("DequantizeLinear", [of("int8", 4, 5), abs(f32(2, 5)).astype(np.float16)], opset=21, axis=0,
         block_size=2, reference=True)


def optimizers():
    rate, time = np.float32(0.1), np.array(3)
    tensors = lambda parts: [f32(*shape) for _ in range(parts) for shape in ((2, 3), (4,))]
    positive = [abs(x) for x in tensors(1)]
    case("Adagrad", [rate, time, *tensors(2), *positive], 4, domain=TRAINING, opset=1, epsilon=1e-4,
         decay_factor=0.1, norm_coefficient=0.01, reference=True)
    case("Adam", [rate, time, *tensors(3), *positive], 6, domain=TRAINING, opset=1, alpha=0.8, beta=0.9,
         epsilon=1e-3, norm_coefficient=0.01, norm_coefficient_post=0.1, reference=True)
    for mode in ("standard", "nesterov"):
        case("Momentum", [rate, time, *tensors(3)], 4, domain=TRAINING, opset=1, alpha=0.9, beta=0.5,
             norm_coefficient=0.01, mode=mode, reference=True)
        case("Momentum", [rate, np.array(0), f32(3), f32(3), f32(3)], 2, domain=TRAINING, opset=1,
             alpha=0.9, beta=0.5, norm_coefficient=0.01, mode=mode, reference=True)


if __name__ == "__main__":
    write(__file__, (losses, sampling, folding, signals, positions, attention, numbers, optimizers))
