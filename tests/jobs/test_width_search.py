"""The search for widths on made-up losses: the order, what is taken, how sure that is, and what interrupts it."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from eamsim.datapath import KNOBS, Widths
from eamsim.errors import BadFile
from eamsim.jobs.search.widths import (
    Enough,
    Search,
    WidthTrial,
    mark,
    paired_loss,
    read_trials,
    unexplained,
    useful,
    with_width,
    write_trials,
)

START = Widths(16, 16, 8, 15, 8, 12, 15, 8, 32)
NEEDED = Widths(9, 10, 3, 5, 3, 4, 6, 5, 18)
"""Below these every bit loses 0.4 points, and is noise."""


class FakeEvaluator:
    """Losses of so many points for each bit below NEEDED, each known to an error; cost falls with every bit."""

    def __init__(self, error: float = 0.0, most: int = 1000):
        self.error, self.most = error, most
        self.trials: dict[tuple[Widths, str], WidthTrial] = {}

    def cost(self, widths: Widths) -> float | None:
        return None if widths.multiplier_bits < 4 else 1.03 ** (sum(vars(widths).values()) - sum(vars(START).values()))

    def measure(self, widths: Widths, stage: str) -> WidthTrial | None:
        if (cost := self.cost(widths)) is None:
            return None
        if (widths, stage) not in self.trials:
            if len(self.trials) == self.most:
                raise Enough
            lacking = sum(max(getattr(NEEDED, knob) - getattr(widths, knob), 0) for knob in KNOBS)
            kept = sum(getattr(widths, knob) / getattr(START, knob) for knob in KNOBS)
            noise = 0.02 * lacking + 1e-4 * (len(KNOBS) - kept)
            self.trials[widths, stage] = WidthTrial(**vars(widths), stage=stage, energy_uj=1, area_um2=1, cost=cost, noise=noise,
                                               loss=0.004 * lacking, error=self.error, top1=0.8, images=100, search="a")  # fmt: skip
        return self.trials[widths, stage]

    def run(self, keep: float) -> list[WidthTrial]:
        search = Search(START, NEEDED.accumulator_bits, keep, self.cost, self.measure)
        try:
            search.run()
        finally:
            self.kept = search.kept
        return self.kept


def joint(bench: FakeEvaluator) -> list[WidthTrial]:
    return [trial for trial in bench.trials.values() if trial.stage == "joint"]


@pytest.mark.parametrize(("keep", "error"), [(0.0001, 0.0), (0.005, 0.0), (0.005, 0.001), (0.02, 0.005)])
def test_the_last_that_passes_is_taken_and_the_first_that_fails_ends_the_search(keep, error):
    bench = FakeEvaluator(error)

    kept = bench.run(keep)

    assert [trial.widths for trial in kept[:2]] == [START, replace(START, accumulator_bits=18)]
    *passed, last = joint(bench)
    assert passed == kept[1:]
    assert all(trial.loss + 1.6449 * error <= keep for trial in passed)
    assert last.loss + 1.6449 * error > keep
    assert all(after.cost <= 0.95 * before.cost for before, after in pairwise([*passed, last]))


def test_bits_that_do_no_harm_go_first():
    kept = FakeEvaluator().run(0.0001)

    assert kept[-1].loss == 0
    assert kept[-1].cost < 1.08 * 1.03 ** (sum(vars(NEEDED).values()) - sum(vars(START).values()))


def test_an_error_as_large_as_what_may_be_lost_leaves_what_is_proven():
    assert [trial.widths for trial in FakeEvaluator(error=0.0031).run(0.005)] == [START, replace(START, accumulator_bits=18)]
    assert FakeEvaluator(error=0.0030).run(0.005)[-1].cost < 0.8


def test_the_order_is_made_without_accuracy():
    class Lucky(FakeEvaluator):
        def measure(self, widths, stage):
            trial = super().measure(widths, stage)
            return trial and replace(trial, loss=-1.0)

    plain, lucky = FakeEvaluator(), Lucky()
    plain.run(1.0)
    lucky.run(1.0)

    assert list(plain.trials) == list(lucky.trials)


@pytest.mark.parametrize("spoiled", ["noise", "loss", "error"])
def test_a_measure_that_is_no_number_passes_no_test(spoiled):
    class Spoiled(FakeEvaluator):
        def measure(self, widths: Widths, stage: str) -> WidthTrial | None:
            trial = super().measure(widths, stage)
            tested = "alone" if spoiled == "noise" else "joint"
            exact = replace(widths, accumulator_bits=START.accumulator_bits) == START
            return replace(trial, **{spoiled: float("nan")}) if trial and stage == tested and not exact else trial

    kept = Spoiled().run(100.0)
    assert all(trial.widths.multiplier_bits == START.multiplier_bits for trial in kept)


def test_a_search_stops_when_it_is_told_to_and_keeps_what_passed():
    bench = FakeEvaluator(most=100)
    with pytest.raises(Enough):
        bench.run(1.0)
    assert len(bench.trials) == 100
    assert bench.kept[1:] == joint(bench)


def test_a_fraction_follows_its_reciprocal():
    assert with_width(START, "reciprocal_bits", 6) == replace(START, reciprocal_bits=6, norm_fraction_bits=7)
    assert with_width(NEEDED, "norm_fraction_bits", 12) == replace(NEEDED, norm_fraction_bits=12, reciprocal_bits=11)


def test_a_wider_setting_is_of_use_only_if_it_is_less_noisy():
    assert useful({8: 0.1, 9: 0.05, 10: 0.06, 11: 0.02, 12: 0.02}) == [8, 9, 11]


def test_loss_and_error_of_one_view_are_those_of_agresti_and_min_twice():
    base, right = np.zeros((1, 100), bool), np.zeros((1, 100), bool)
    base[0, :9], right[0, 4:10] = True, True  # 4 are lost, 1 is gained

    loss, error = paired_loss(right, base)

    assert loss == pytest.approx(3 / 102)
    assert error == pytest.approx(np.sqrt(2 * (4 + 1 + 1 - 3**2 / 102)) / 102)
    assert paired_loss(base, base) == (0, pytest.approx(np.sqrt(2) / 102))


def test_views_are_no_images_of_their_own():
    rng = np.random.default_rng(0)
    base, right = rng.random((2, 1, 2000)) < 0.8

    one, same = paired_loss(right, base), paired_loss(right.repeat(9, axis=0), base.repeat(9, axis=0))

    assert one == pytest.approx(same)


def test_the_bound_holds_as_often_as_it_says():
    """Ties that break anew in every view, of 500 images: in 95 % of 2,000 draws another 500, as they are, lose no more than the bound."""
    rng = np.random.default_rng(1)

    def draw(views):
        ties, sure = rng.random((2000, 1, 500)) < 0.1, np.arange(500) < 350
        return tuple(np.where(ties, rng.random((2000, views, 500)) < odds, sure) for odds in (0.4, 0.5))

    bounds = [loss + 1.6449 * error for loss, error in map(paired_loss, *draw(4))]
    right, base = draw(1)

    assert 0.94 < np.mean(bounds >= base.mean(axis=(1, 2)) - right.mean(axis=(1, 2))) < 0.96


def test_noise_does_not_know_units_and_offsets():
    logits = np.random.default_rng(0).normal(0, 1e5, (50, 10))

    assert unexplained(logits, logits) == 0
    assert unexplained(4 * logits + np.arange(50)[:, None], logits) == pytest.approx(0, abs=1e-12)
    assert unexplained(np.zeros_like(logits), logits) == 1
    noisy = logits + np.random.default_rng(1).normal(0, 1e5, (50, 10))
    assert 0.4 < unexplained(noisy, logits) < 0.6


def test_a_table_is_read_as_it_was_written(tmp_path):
    bench = FakeEvaluator(0.001)
    kept = bench.run(0.005)
    trials = mark(list(bench.trials.values()), kept)
    write_trials(tmp_path / "t.csv", trials)

    assert read_trials(tmp_path / "t.csv") == trials
    assert [trial.widths for trial in trials if trial.chosen] == [kept[-1].widths]
    assert [trial.widths for trial in trials if trial.kept] == [trial.widths for trial in kept]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("residual_bits", "residual", "expected the columns residual_bits,.*, got residual,"),
        ("16,16,8", "16,x,8", "row 1: expected residual_bits, .*, got 16,x,8"),
        ("0.0,0.8,100", "nan,0.8,100", "row 1: expected residual_bits, .*, got 16,16,8,.*,nan,0.8,100"),
        ("0.8,100", "1.8,100", r"row 1: expected fractions from 0 to 1, images and a cost, got top1 1.8, noise 0.0"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, old, new, message):
    path = tmp_path / "t.csv"
    write_trials(path, FakeEvaluator().run(0.0001)[:1])
    path.write_text(path.read_text().replace(old, new, 1))

    with pytest.raises(BadFile, match=f"^{path}: {message}"):
        read_trials(path)
