"""The search for widths on made-up losses: what is tried, what is taken, and what interrupts it."""

from dataclasses import replace

import numpy as np
import pytest

from eamsim.errors import BadFile
from eamsim.narrow import KNOBS, Widths
from eamsim.width_search import Enough, Search, Trial, choose, fitted_scale, mark, probabilities, read_trials, with_width, write_trials

START = Widths(16, 16, 8, 15, 8, 12, 15, 8, 32)
NEEDED = Widths(9, 10, 3, 5, 3, 4, 6, 5, 18)
"""Below these every bit costs 0.4 points."""


class Bench:
    """Losses of so many points for each bit below NEEDED, more for two knobs that are narrow together; cost is the number of bits."""

    def __init__(self, together: float = 0.0, most: int = 1000):
        self.together, self.most = together, most
        self.trials: dict[Widths, Trial] = {}

    def cost(self, widths: Widths) -> float | None:
        return None if widths.multiplier_bits < 4 else float(sum(vars(widths).values()))

    def measure(self, widths: Widths, stage: str) -> Trial | None:
        if widths not in self.trials:
            if len(self.trials) == self.most:
                raise Enough
            if (cost := self.cost(widths)) is None:
                return None
            lost = 0.004 * sum(max(getattr(NEEDED, knob) - getattr(widths, knob), 0) for knob in KNOBS)
            lost += self.together * (widths.residual_bits < 12) * (widths.multiplier_bits < 14)
            self.trials[widths] = Trial(**vars(widths), stage=stage, energy_uj=1, area_um2=1, cost=cost, top1=0.8 - lost,
                                        probability=0.7 - lost, images=100, search="a")  # fmt: skip
        return self.trials[widths]

    def run(self, keep: float) -> list[Trial]:
        Search(START, NEEDED.accumulator_bits, keep, self.cost, self.measure).run()
        return list(self.trials.values())


def test_where_widths_do_not_touch_one_another_the_narrowest_of_each_is_found():
    trials = Bench().run(0.0)

    assert choose(trials, 0.0).widths == NEEDED
    assert trials[0].widths == START


@pytest.mark.parametrize("keep", [0.0, 0.005, 0.009])
@pytest.mark.parametrize("together", [0.0, 0.006, 0.02])
def test_what_is_taken_keeps_and_no_single_bit_less_does(keep, together):
    bench = Bench(together)
    trials = bench.run(keep)

    chosen = choose(trials, keep)

    assert trials[0].top1 - chosen.top1 <= keep + 1e-9
    for knob in set(KNOBS) - {"accumulator_bits"}:
        narrower = bench.measure(with_width(chosen.widths, knob, getattr(chosen, knob) - 1), "joint")
        assert narrower is None or trials[0].top1 - narrower.top1 > keep


def test_the_worse_measure_decides():
    base = Bench().run(0.0)[0]
    flattered = replace(base, cost=1.0, top1=0.9, probability=base.probability - 0.1)

    assert choose([base, flattered], 0.05) is base
    assert choose([base, flattered], 0.1) is flattered


def test_a_search_is_deterministic_and_stops_when_it_is_told_to():
    assert Bench(0.006).run(0.005) == Bench(0.006).run(0.005)
    short = Bench(0.006, most=10)
    with pytest.raises(Enough):
        short.run(0.005)
    assert len(short.trials) == 10


def test_a_fraction_follows_its_reciprocal():
    assert with_width(START, "reciprocal_bits", 6) == replace(START, reciprocal_bits=6, norm_fraction_bits=7)
    assert with_width(NEEDED, "norm_fraction_bits", 12) == replace(NEEDED, norm_fraction_bits=12, reciprocal_bits=11)


def test_the_front_is_what_no_other_trial_beats():
    trials = Bench(0.006).run(0.005)
    chosen = choose(trials, 0.005)

    for marked in mark(trials, chosen):
        better = [t for t in trials if t.cost <= marked.cost and t.top1 >= marked.top1 and (t.cost, t.top1) != (marked.cost, marked.top1)]
        assert marked.pareto == (not better)
        assert marked.chosen == (marked.widths == chosen.widths)


def test_the_fitted_scale_makes_a_model_as_sure_as_it_is_right():
    logits = np.random.default_rng(0).normal(0, 1e5, (500, 10))

    scale = fitted_scale(logits, 0.75)

    assert probabilities(logits, scale).max(axis=1).mean() == pytest.approx(0.75)
    np.testing.assert_allclose(probabilities(logits, scale).sum(axis=1), 1)


def test_a_table_is_read_as_it_was_written(tmp_path):
    trials = Bench().run(0.005)
    trials = mark(trials, choose(trials, 0.005))
    write_trials(tmp_path / "t.csv", trials)

    assert read_trials(tmp_path / "t.csv") == trials


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("residual_bits", "residual", "expected the columns residual_bits,.*, got residual,"),
        ("16,16,8", "16,x,8", "row 1: expected residual_bits, .*, got 16,x,8"),
        ("0.7,100", "1.7,100", r"row 1: expected fractions from 0 to 1, images and a cost, got top1 0.8, probability 1.7"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, old, new, message):
    path = tmp_path / "t.csv"
    write_trials(path, Bench().run(0.0)[:1])
    path.write_text(path.read_text().replace(old, new, 1))

    with pytest.raises(BadFile, match=f"^{path}: {message}"):
        read_trials(path)
