"""Fitted levels: the nearest one for every value, and no sixteen better ones; a program built with them."""

import json
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from command_line import eamsim
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from eamsim import artifact, golden  # noqa: E402
from eamsim.errors import UserError  # noqa: E402
from eamsim.program import Linear  # noqa: E402
from reference.lowering.constants import gelu, gelu_index, gelu_table  # noqa: E402
from reference.quantisation.levels import Levels, _best_levels, fit_levels  # noqa: E402
from reference.quantisation.quantisers import search_affine  # noqa: E402

DIGITS = Path(__file__).parents[2] / "eamsim/data/digits"


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def after_gelu(values=20_000, seed=0):
    return torch.nn.functional.gelu(tensor(np.random.default_rng(seed).normal(-0.7, 1.2, values)))


def test_codes_by_hand():
    quantiser = Levels(tensor(0.5), tensor([-3.0, 0.0, 1.0, 4.0]), 2)
    x = tensor([-9.0, -0.76, -0.75, 0.1, 0.25, 0.6, 1.25, 99.0])  # two lie half way, and take the upper

    assert quantiser.codes(x).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert quantiser.steps(x).tolist() == [-3, -3, 0, 0, 1, 1, 4, 4]
    assert quantiser(x).tolist() == quantiser.decode(quantiser.codes(x)).tolist() == [-1.5, -1.5, 0, 0, 0.5, 0.5, 2, 2]


@examples(25)
@given(st.dictionaries(st.integers(-300, 300), st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 90))
def test_no_two_levels_are_better(counted, step):
    numbers, counts = (np.array(each) for each in zip(*sorted(counted.items()), strict=True))
    error, levels = _best_levels(numbers, counts, step / 16, 2)

    def error_of(pair):
        return float((np.abs(numbers[:, None] - np.array(pair) * (step / 16)).min(axis=1) ** 2 * counts).sum())

    every = range(-128, 128, 1)
    near = [n for n in every if abs(n * step / 16) <= 400] or [0]
    if len(near) > 60:
        near = sorted({*near[:: len(near) // 30], *levels.tolist(), *(int(n) + d for n in levels for d in (-1, 1) if -128 <= n + d <= 127)})
    assert error == pytest.approx(error_of(levels))  # of sums of squares in float64
    assert all(error_of(pair) >= error * (1 - 1e-9) - 1e-6 for pair in combinations(near, 2))


def test_the_best_levels_are_integers_apart_and_beat_an_even_grid():
    x = after_gelu()
    quantiser, even = fit_levels(x, 4), search_affine(x, 4, contain_zero=True)

    assert quantiser.levels.tolist() == sorted({round(level) for level in quantiser.levels.tolist()})
    assert len(quantiser.levels) == 16
    assert -128 <= quantiser.levels[0] < quantiser.levels[-1] <= 127
    assert (quantiser(x) - x).square().sum() < 0.4 * (even(x) - x).square().sum()
    for index in range(16):  # no single level could move for the better
        for by in (-1, 1):
            levels = quantiser.levels.clone()
            levels[index] += by
            if len(set(levels.tolist())) == 16 and -128 <= levels[index] <= 127:
                moved = Levels(quantiser.scale, levels, 4)
                assert (moved(x) - x).square().sum() > 0.999 * (quantiser(x) - x).square().sum()  # the histogram rounds x


def test_the_order_of_the_values_decides_nothing():
    x = after_gelu()
    one, other = fit_levels(x, 4), fit_levels(x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))].reshape(100, -1), 4)

    assert one.scale == other.scale
    assert one.levels.tolist() == other.levels.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("values", [[0.0], [0.0] * 5, [3.0], [-2.0, -2.0, 1e-300], [1e-12, 5.0], [1e30, -1e-3]])
def test_hardly_any_values(values):
    quantiser = fit_levels(tensor(values), 4)

    np.testing.assert_allclose(quantiser(tensor(values)), values, rtol=0.005, atol=0.005 * max(map(abs, values)))  # half an 8-bit step
    assert len(set(quantiser.levels.tolist())) == 16


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(UserError, match="levels: expected finite values"):
        fit_levels(tensor([1.0, value]), 4)


@pytest.mark.parametrize("index_bits", [4, 8])
def test_every_entry_of_the_table_has_the_code_of_the_nearest_level(index_bits):
    quantiser = fit_levels(after_gelu(), 4)
    limits = quantiser.limits.tolist()
    step, zero = gelu_index(limits, quantiser.reach, index_bits)
    table = gelu_table(Fraction(step), zero, index_bits, limits)
    levels = [Fraction(level) for level in quantiser.decode(torch.arange(16)).tolist()]

    for index, code in enumerate(table.tolist()):
        y = gelu((index - zero) * Fraction(step))
        assert abs(levels[code] - y) == min(abs(level - y) for level in levels)
    assert table[-1] == 15
    assert index_bits < 8 or set(table.tolist()) == set(range(16))


@pytest.mark.slow
def test_a_program_built_with_them(tmp_path):
    """Its second MLP layers have levels, its provenance says so, and it decides as the one with even steps."""
    options = ("--calib", DIGITS / "digits_calib.npz", "--calib-images", 64, "--limit", 64, "--tau", "0", "--json")
    built = {}
    for codes in ("uniform", "fitted"):
        done = eamsim("build", f"local-dir:{DIGITS}", *options, "--codes", codes, "-o", tmp_path / f"{codes}.eam")
        assert json.loads(done.out)["codes"] == codes
        built[codes], provenance = artifact.read(tmp_path / f"{codes}.eam")
        assert provenance["codes"] == codes
    for codes, program in built.items():
        fitted = [op.out.name for op in program.operations if isinstance(op, Linear) and op.levels is not None]
        assert fitted == [name for name in program.values if name.endswith(".mlp.fc2") and codes == "fitted"]
        assert {value.bits for name, value in program.values.items() if name.endswith(".mlp.fc1")} == {4}

    test = np.load(DIGITS / "digits_test.npz")
    hits = {
        codes: sum(
            golden.run(program, image).argmax() == label for image, label in zip(test["images"][:100], test["labels"][:100], strict=True)
        )
        for codes, program in built.items()
    }
    assert hits["fitted"] >= hits["uniform"] - 3
