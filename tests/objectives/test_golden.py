"""Values, gradients and metrics against float64 loops that share no code with the package: see tests/golden."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.methods import METHODS
from jaxalign.types import Pair, Weighted

FOLDER = Path(__file__).parents[1] / "golden"
CASES = [(file.stem, case) for file in sorted(FOLDER.glob("*.json")) for case in json.loads(file.read_text())]
each_case = pytest.mark.parametrize(
    ("method", "case"), CASES, ids=[f"{method}-{case['name']}-{i}" for i, (method, case) in enumerate(CASES)]
)


def arrays(name, value):
    """JSON to float32 (bool, int32) arrays; both sides of a dict to a Pair; seeds to keys."""
    if name == "state":
        return {key: jnp.asarray(number, jnp.float32) for key, number in value.items()}
    if name == "keys":
        return jax.vmap(jax.random.key)(jnp.asarray(value))
    if isinstance(value, dict):
        return Pair(arrays(name, value["chosen"]), arrays(name, value["rejected"]))
    array = np.asarray(value)
    if array.dtype == bool:
        return jnp.asarray(array)
    return jnp.asarray(array, jnp.int32 if name in ("step_labels", "degrees") else jnp.float32)


def assert_close(actual, expected, name):
    """Within 1e-6 of the largest expected value. What is too small for float32 may be 0."""
    expected = np.asarray(expected, np.float64)
    tolerance = max(1e-6 * np.abs(expected).max(), np.finfo(np.float32).tiny)
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=1e-6, atol=tolerance, err_msg=name)


def test_every_method_has_golden_values():
    assert {method for method, _ in CASES} == set(METHODS)


@each_case
def test_losses_and_metrics(method, case):
    inputs = {name: arrays(name, value) for name, value in case["inputs"].items()}
    output = METHODS[method].loss(inputs, case["options"])
    assert_close(output.losses, case["losses"], "losses")
    assert_close(output.weights, case["weights"], "weights")
    assert set(output.metrics) == set(case["metrics"])
    for name, (values, weights) in case["metrics"].items():
        actual = output.metrics[name]
        actual = actual if isinstance(actual, Weighted) else Weighted(actual, jnp.ones_like(actual))
        assert_close(actual.values, values, name)
        assert_close(actual.weights, weights, name)

    for name, value in case.get("state", {}).items():
        assert_close(output.state[name], value, name)


@each_case
def test_gradient(method, case):
    """With respect to ``policy``, or to the input that the case names as ``gradient_of``."""
    inputs = {name: arrays(name, value) for name, value in case["inputs"].items()}
    of = case.get("gradient_of", "policy")

    def loss(given):
        output = METHODS[method].loss(inputs | {of: given}, case["options"])
        return (output.weights * output.losses).sum() / output.weights.sum()

    value, gradient = jax.value_and_grad(loss)(inputs[of])
    assert_close(value, case["loss"], "loss")
    expected = case["gradient"]
    if isinstance(expected, dict):
        actual = np.stack([gradient.chosen, gradient.rejected])
        assert_close(actual, [expected["chosen"], expected["rejected"]], "gradient")
    else:
        assert_close(gradient, expected, "gradient")


@pytest.mark.parametrize("script", sorted(FOLDER.glob("generate*.py")), ids=lambda path: path.stem)
def test_the_files_are_what_the_generators_write(script, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))  # as when the script is run; generators share parts of generate.py
    spec = importlib.util.spec_from_file_location(f"golden_{script.stem}", script)
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    monkeypatch.setattr(generator, "FOLDER", tmp_path)
    generator.main([])

    def same(a, b):
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        if isinstance(a, list):
            return len(a) == len(b) and all(map(same, a, b))
        return a == b if isinstance(a, str) else a == pytest.approx(b, rel=1e-12)

    written = list(tmp_path.glob("*.json"))
    assert written
    for file in written:
        assert same(json.loads(file.read_text()), json.loads((FOLDER / file.name).read_text())), file.name
