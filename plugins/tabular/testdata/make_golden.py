"""Writes golden.json: what scikit-learn, NumPy and pandas-style binning give
for configurations of the tabular transform.

    python make_golden.py

Needs numpy and scikit-learn. Numbers that are missing are null.
"""

import json
import pathlib

import numpy as np
from sklearn import impute, preprocessing

RNG = np.random.default_rng(7)
ROWS = 12


def main():
    cases = [numbers(np.float32, "FP32"), numbers(np.float64, "FP64"), integers(), texts(), bins(), min_max(), vectors()]
    lines = ",\n".join(json.dumps(case) for case in cases)
    pathlib.Path(__file__).with_name("golden.json").write_text(f"[\n{lines}\n]\n")


def case(name, columns, steps, inputs, expected, output=None):
    config = {"columns": columns, "steps": steps, **({"output": {"columns": output}} if output else {})}
    return {"name": name, "config": config, "inputs": {key: plain(value) for key, value in inputs.items()},
            "expected": np.asarray(expected, np.float32).tolist()}


def plain(values):
    return [None if isinstance(value, float) and np.isnan(value) else value for value in values.ravel().tolist()]


def holes(values):
    values[::4] = np.nan
    return values


def number(name, dtype="FP32"):
    return {"name": name, "type": "number", "dtype": dtype}


def numbers(dtype, wire):
    """Mean and median imputation, log1p, standard scaling and clipping, as a pipeline."""
    age = holes(RNG.uniform(18, 80, ROWS).astype(dtype))
    income = holes(np.exp(RNG.normal(10, 1, ROWS)).astype(dtype))
    mean = impute.SimpleImputer(strategy="mean").fit(age.reshape(-1, 1))
    median = impute.SimpleImputer(strategy="median").fit(income.reshape(-1, 1))
    filled_age = mean.transform(age.reshape(-1, 1))
    filled_income = np.log1p(median.transform(income.reshape(-1, 1)))
    scaler = preprocessing.StandardScaler().fit(np.hstack([filled_age, filled_income]))
    scaled = np.clip(scaler.transform(np.hstack([filled_age, filled_income])), -1.5, 1.5)
    scales = {name: {"mean": float(scaler.mean_[i]), "std": float(scaler.scale_[i])}
              for i, name in enumerate(["age", "income"])}
    limits = {"min": -1.5, "max": 1.5}
    steps = [
        {"step": "impute", "values": {"age": float(mean.statistics_[0]), "income": float(median.statistics_[0])}},
        {"step": "log", "columns": ["income"], "plus_one": True},
        {"step": "scale", "columns": scales},
        {"step": "clip", "columns": {"age": limits, "income": limits}},
    ]
    columns = [number("age", wire), number("income", wire)]
    return case(f"numbers {wire}", columns, steps, {"age": age, "income": income}, scaled)


def integers():
    """Integers one-hot by value, and beside them as they are."""
    kind, count = RNG.integers(1, 5, ROWS), RNG.integers(0, 10**6, ROWS)
    encoder = preprocessing.OneHotEncoder(categories=[[1, 2, 4]], handle_unknown="ignore", sparse_output=False)
    hot = encoder.fit_transform(kind.reshape(-1, 1))
    expected = np.hstack([count.reshape(-1, 1), hot])
    steps = [{"step": "one_hot", "columns": {"kind": [1, 2, 4]}}]
    columns = [number("kind", "INT64"), number("count", "INT64")]
    return case("integers", columns, steps, {"kind": kind, "count": count}, expected, ["count", "kind"])


def texts():
    city = RNG.choice(["Berlin", "Zürich", "Oslo", ""], ROWS)
    plan = RNG.choice(["free", "pro"], ROWS)
    filled = np.where(city == "", "Oslo", city)
    encoder = preprocessing.OneHotEncoder(
        categories=[["Berlin", "Oslo"], ["free", "pro"]], handle_unknown="ignore", sparse_output=False)
    expected = encoder.fit_transform(np.stack([filled, plan], 1))
    steps = [
        {"step": "impute", "values": {"city": "Oslo"}},
        {"step": "one_hot", "columns": {"city": ["Berlin", "Oslo"], "plan": ["free", "pro"]}},
    ]
    columns = [{"name": "city", "type": "string"}, {"name": "plan", "type": "string"}]
    return case("texts", columns, steps, {"city": city, "plan": plan}, expected)


def bins():
    """Both ends of `digitize`, on edges and between them; 25 is in 20-30."""
    age = np.array([25, 20, 30, 19.5, 31, 99, 0, 40, 39.9, 29.999, 20.001, np.nan], np.float32)
    labels = ["<20", "20-30", "30-40", ">=40"]
    expected = []
    for right in (False, True):
        hot = np.eye(4)[np.minimum(np.digitize(age, [20, 30, 40], right=right), 3)]
        hot[np.isnan(age)] = 0
        expected.append(hot)
    steps = [
        {"step": "bin", "columns": {
            "age": {"edges": [20, 30, 40]},
            "age2": {"edges": [20, 30, 40], "labels": labels, "closed": "right"}}},
        {"step": "one_hot", "columns": {"age": labels, "age2": labels}},
    ]
    return case("bins", [number("age"), number("age2")], steps, {"age": age, "age2": age}, np.hstack(expected))


def min_max():
    x, y = (RNG.uniform(-3, 9, ROWS).astype(np.float32) for _ in range(2))
    scaler = preprocessing.MinMaxScaler().fit(x.reshape(-1, 1))
    expected = np.hstack([y.reshape(-1, 1), scaler.transform(x.reshape(-1, 1)), np.log(np.abs(y) + 1).reshape(-1, 1)])
    steps = [
        {"step": "scale", "columns": {"x": {"min": float(scaler.data_min_[0]), "max": float(scaler.data_max_[0])}}},
        {"step": "log", "columns": ["z"]},
    ]
    columns = [number("x"), number("y"), number("z")]
    return case("min and max", columns, steps, {"x": x, "y": y, "z": np.abs(y) + 1}, expected, ["y", "x", "z"])


def vectors():
    """Vectors of pixels between columns of one number."""
    age, pixels, weight = RNG.uniform(18, 80, ROWS), holes(RNG.uniform(0, 16, (ROWS, 3))), RNG.uniform(40, 99, ROWS)
    filled = np.where(np.isnan(pixels), 2.0, pixels)
    expected = np.column_stack([weight, np.clip(filled / 16.0, None, 0.75), (age - 40.0) / 10.0])
    steps = [
        {"step": "impute", "values": {"pixels": 2.0}},
        {"step": "scale", "columns": {"pixels": {"min": 0.0, "max": 16.0}, "age": {"mean": 40.0, "std": 10.0}}},
        {"step": "clip", "columns": {"pixels": {"max": 0.75}}},
    ]
    columns = [number("age"), number("pixels") | {"width": 3}, number("weight")]
    inputs = {"age": age, "pixels": pixels, "weight": weight}
    return case("vectors", columns, steps, inputs, expected, ["weight", "pixels", "age"])


if __name__ == "__main__":
    main()
