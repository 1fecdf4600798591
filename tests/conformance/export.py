"""Writes ONNX's backend node tests as files that the runner reads.

    python export.py FOLDER

`data.bin` holds models and tensors end to end. `index.jsonl` has one line for
each set of data of a test: where its model lies, and its inputs and outputs
in order as {name, dtype (TensorProto's number), shape, offset, length}, with
"strings": true where the bytes are u32 lengths, each before its text, and
"undeclared": true where the model gives an input no shape.

Graphs take and give tensors. Where a test has a sequence or an optional at its
edge, standard operators around the model put it together from tensors
(`SequenceConstruct`, `SequenceEmpty`, `Optional`) and take it apart again
(`SequenceLength`, `SequenceAt`, `OptionalHasElement`, `OptionalGetElement`), so
that the model in between sees the value itself.
"""

import glob
import json
import os
import pathlib
import struct
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.loader import load_model_tests


class Data:
    """The file of bytes."""

    def __init__(self, path):
        self.file = open(path, "wb")
        self.at = 0

    def put(self, data):
        place = {"offset": self.at, "length": len(data)}
        self.file.write(data)
        self.at += len(data)
        return place

    def tensor(self, name, tensor):
        entry = {"name": name, "dtype": tensor.data_type, "shape": list(tensor.dims)}
        if tensor.data_type == TensorProto.STRING:
            items = b"".join(struct.pack("<I", len(s)) + s for s in tensor.string_data)
            return {**entry, "strings": True, **self.put(items)}
        raw = numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
        return {**entry, **self.put(raw)}


def read(path, kind):
    """A value of a test as TensorProto, a list, or ("optional", value)."""
    with open(path, "rb") as file:
        data = file.read()
    which = kind.WhichOneof("value")
    if which == "tensor_type":
        return TensorProto.FromString(data)
    if which == "sequence_type":
        return sequence(onnx.SequenceProto.FromString(data))
    if which == "optional_type":
        return optional(onnx.OptionalProto.FromString(data))
    raise ValueError(f"{path}: {which}")


def sequence(proto):
    parts = {
        onnx.SequenceProto.TENSOR: proto.tensor_values,
        onnx.SequenceProto.SEQUENCE: map(sequence, proto.sequence_values),
        onnx.SequenceProto.OPTIONAL: map(optional, proto.optional_values),
        onnx.SequenceProto.UNDEFINED: (),
    }
    return list(parts[proto.elem_type])


def optional(proto):
    if proto.elem_type == onnx.OptionalProto.TENSOR and proto.HasField("tensor_value"):
        return ("optional", proto.tensor_value)
    if proto.elem_type == onnx.OptionalProto.SEQUENCE and proto.HasField("sequence_value"):
        return ("optional", sequence(proto.sequence_value))
    return ("optional", None)


class Edge:
    """Takes a model's inputs or outputs apart into tensors."""

    def __init__(self, data):
        self.data = data
        self.nodes, self.infos, self.tensors, self.constants = [], [], [], []

    def tensor(self, name, tensor, info=None):
        self.infos.append(info or helper.make_tensor_value_info(
            name, tensor.data_type, [None] * len(tensor.dims)))
        entry = self.data.tensor(name, tensor)
        undeclared = not self.infos[-1].type.tensor_type.HasField("shape")
        self.tensors.append({**entry, "undeclared": True} if undeclared else entry)

    def literal(self, name, array):
        self.constants.append(numpy_helper.from_array(array, name))

    def input(self, name, value, kind):
        if isinstance(value, list):
            parts = [f"{name}/{index}" for index in range(len(value))]
            element = kind.sequence_type.elem_type
            for part, item in zip(parts, value):
                self.input_part(part, item, element)
            if parts:
                self.nodes.append(helper.make_node("SequenceConstruct", parts, [name]))
            else:
                dtype = element.tensor_type.elem_type
                self.nodes.append(helper.make_node("SequenceEmpty", [], [name], dtype=dtype))
            return
        _, inner = value
        element = kind.optional_type.elem_type
        if inner is None:
            self.nodes.append(helper.make_node("Optional", [], [name], type=element))
            return
        self.input_part(f"{name}/value", inner, element)
        self.nodes.append(helper.make_node("Optional", [f"{name}/value"], [name]))

    def input_part(self, name, value, kind):
        if isinstance(value, TensorProto):
            self.tensor(name, value)
        else:
            self.input(name, value, kind)

    def output(self, name, value):
        if isinstance(value, TensorProto):
            self.tensor(name, value)
        elif isinstance(value, list):
            self.nodes.append(helper.make_node("SequenceLength", [name], [f"{name}/length"]))
            self.tensor(f"{name}/length", numpy_helper.from_array(np.array(len(value), np.int64)))
            for index, item in enumerate(value):
                part, at = f"{name}/{index}", f"{name}/at{index}"
                self.literal(at, np.array(index, np.int64))
                self.nodes.append(helper.make_node("SequenceAt", [name, at], [part]))
                self.output(part, item)
        else:
            has = f"{name}/has"
            self.nodes.append(helper.make_node("OptionalHasElement", [name], [has]))
            self.tensor(has, numpy_helper.from_array(np.array(value[1] is not None)))
            if value[1] is not None:
                part = f"{name}/value"
                self.nodes.append(helper.make_node("OptionalGetElement", [name], [part]))
                self.output(part, value[1])


def wrapped(model, inputs, outputs, data):
    """The model with tensors at its edges, and the tensors."""
    before, after = Edge(data), Edge(data)
    for info, value in zip(model.graph.input, inputs):
        if isinstance(value, TensorProto):
            before.tensor(info.name, value, info)
        else:
            before.input(info.name, value, info.type)
    for info, value in zip(model.graph.output, outputs):
        if isinstance(value, TensorProto):
            after.tensor(info.name, value, info)
        else:
            after.output(info.name, value)
    if before.nodes or after.nodes:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        graph = copy.graph
        nodes = before.nodes + list(graph.node) + after.nodes
        for field, items in (("node", nodes), ("input", before.infos), ("output", after.infos)):
            graph.ClearField(field)
            getattr(graph, field).extend(items)
        graph.initializer.extend(after.constants)
        model = copy
    return model, before.tensors, after.tensors


def main(folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = Data(folder / "data.bin")
    cases = sorted(load_model_tests(kind="node"), key=lambda case: case.name)
    operators = {case.name: operator(case) for case in cases}
    with open(folder / "index.jsonl", "w", encoding="utf-8") as index:
        for case in cases:
            # A test of a function body is a test of the function's operator.
            plain = case.name.replace("_expanded_ver18", "").replace("_expanded", "")
            for line in lines(case, operators.get(plain, operators[case.name]), data):
                index.write(json.dumps(line) + "\n")


def operator(case):
    model = onnx.load(os.path.join(case.model_dir, "model.onnx"))
    return model.graph.node[0].op_type if model.graph.node else "none"


def lines(case, name, data):
    model = onnx.load(os.path.join(case.model_dir, "model.onnx"))
    graph = model.graph
    for folder in sorted(glob.glob(os.path.join(case.model_dir, "test_data_set_*"))):
        inputs = [read(f"{folder}/input_{i}.pb", x.type) for i, x in enumerate(graph.input)]
        outputs = [read(f"{folder}/output_{i}.pb", x.type) for i, x in enumerate(graph.output)]
        whole, takes, gives = wrapped(model, inputs, outputs, data)
        yield {
            "test": case.name, "operator": name, "rtol": case.rtol, "atol": case.atol,
            "model": data.put(whole.SerializeToString()), "inputs": takes, "outputs": gives,
        }


if __name__ == "__main__":
    main(sys.argv[1])
