"""The approximate ONNX form: near golden's logits, in the types that compilers look for. Float, so with a tolerance."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from programs import FREEZES, Shape, operation, random_images, random_program

from eamsim import artifact, golden
from eamsim.exports import onnx_qdq
from eamsim.program import Gather, Linear

DIGITS = Path(str(files("eamsim"))) / "data" / "digits"


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """With ONNX Runtime's own optimisations, as a user would run it."""
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_digits_are_classified_alike():
    """Rounding falls the other way now and then: 98 of 100 classes equal, logits within 15 % of their mean size on average."""
    program, _ = artifact.read(DIGITS / "digits.eam")
    images = np.load(DIGITS / "digits_test.npz")["images"][:100]
    run = session(onnx_qdq.export(program)).run
    found = np.stack([np.ravel(run(None, {"image": image})[0]) for image in images])  # pyright: ignore[reportArgumentType, reportCallIssue]
    expected = np.stack([golden.run(program, image) for image in images])
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).sum() >= 98
    assert np.abs(found - expected).mean() < 0.15 * np.abs(expected).mean()


@pytest.mark.parametrize("seed", range(7))
def test_every_operation(seed: int):
    """Untrained programs: finite logits whose order of magnitude is right, for each width, freezing and softmax."""
    windows = 1 + 3 * (seed % 2)
    shape = Shape(
        seed=seed, windows=windows, prefix=2 - min(windows, 2), freeze=FREEZES[seed], softmax=("renormalised", "paper")[seed % 2],
        biased=seed > 2, pooled=seed % 3 == 0, fitted=seed % 3 == 1, weight_bits=2 + seed, activation_bits=2 + seed,
    )  # fmt: skip
    program = random_program(shape)
    image = random_images(program, 2, seed)[1]
    found = np.ravel(session(onnx_qdq.export(program)).run(None, {"image": image})[0])  # pyright: ignore[reportArgumentType, reportCallIssue]
    expected = golden.run(program, image)
    assert np.abs(found - expected).max() < 0.2 * np.abs(expected).max()


def test_weights_are_int4():
    program = random_program(Shape(seed=3))
    stored = {tensor.name: tensor for tensor in onnx_qdq.export(program).graph.initializer}
    op = operation(program, "block0.mlp.fc1", Linear)
    for name, codes in (("weight", op.weight), ("weight_zero", op.weight_zero)):
        tensor = stored[f"block0.mlp.fc1.{name}"]
        assert tensor.data_type == onnx.TensorProto.INT4
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int64), codes.astype(np.int64) - 8)


def test_pixels_are_codes_like_others():
    """A Gather may take them as they are."""
    program = random_program(Shape(seed=3))
    gather = operation(program, "patches", Gather)
    program = replace(program, operations=tuple(replace(op, x="image") if op is gather else op for op in program.operations))
    image = random_images(program, 1, 0)[0]
    found = np.ravel(session(onnx_qdq.export(program)).run(None, {"image": image})[0])  # pyright: ignore[reportArgumentType, reportCallIssue]
    expected = golden.run(program, image)
    assert np.abs(found - expected).max() < 0.2 * np.abs(expected).max()
