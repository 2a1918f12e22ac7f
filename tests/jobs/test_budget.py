"""The budget search: best masks of small cases by brute force, what is written and refused, and the command on the digits."""

import json
from dataclasses import replace
from importlib.resources import files
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from command_line import eamsim
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from programs import Shape, random_program

pytest.importorskip("timm", reason="needs the extra 'reference'")

from cost_model.work.counts import count, granularity
from eamsim import artifact
from eamsim.errors import UserError
from eamsim.jobs import build as library
from eamsim.jobs.search import budget
from eamsim.jobs.search.budget import Budget, BudgetTrial, Rungs, choose, cross_entropy, make_rungs, mark, search, uniform_states
from eamsim.jobs.search.front import read_front, write_front
from eamsim.program import Attention

DIGITS = Path(str(files("eamsim") / "data" / "digits"))
SOURCE = ("build", f"local-dir:{DIGITS}", "--calib", DIGITS / "digits_calib.npz", "--no-compensate")  # not searched


def trial(macs_saved: float, top1: float, **changes) -> BudgetTrial:
    return BudgetTrial("head", macs_saved, macs_saved, top1, 100, 0.0, **changes)


def budget_of(**settings) -> Budget:
    return Budget(lambda program: 1, **settings)


def nested_rungs(heads: int, shares: np.ndarray) -> Rungs:
    """Rungs of 0, 1, 2, ... frozen rows; shares: [rungs, heads]."""
    tokens = len(shares) - 1
    masks = np.zeros((len(shares), heads, tokens, tokens), np.bool_)
    for rows in range(len(shares)):
        masks[rows, :, :rows] = True
    return Rungs(("none", *["row"] * (tokens - 1), "head"), [list(rung) for rung in masks], shares, start=0, heads=(heads,))


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), min_size=1, max_size=5))
def test_heads_of_independent_damages_are_frozen_in_the_best_order(heads):
    damages, macs = np.array(heads).T
    rungs = nested_rungs(len(heads), np.outer([0, 1], np.ones(len(heads))))
    gains = np.outer([0, 1], macs)

    states = list(search(rungs, gains, lambda state: float(damages @ state)))

    assert len(states) == len(heads)
    assert [sum(state) for state in states] == list(range(1, len(heads) + 1))
    for state in states:
        saved, damage = macs @ state, damages @ state
        subsets = [np.array(subset) for subset in product((0, 1), repeat=len(heads))]
        # a state of the greedy order is best for what it saves, be it cut from heads or from their fractions (Dantzig's bound)
        assert min(float(damages @ subset) for subset in subsets if macs @ subset >= saved) == damage


@given(st.integers(0, 2**32 - 1))
def test_rungs_of_independent_damages_are_climbed_in_the_best_order(seed):
    rng = np.random.default_rng(seed)
    heads = np.arange(3)
    shares = np.sort(np.vstack([np.zeros(3), rng.random((2, 3)), np.ones(3)]), axis=0)
    damages, gains = shares * rng.integers(1, 1000, 3), np.outer([0, 1, 2, 10], np.ones(3))  # whole heads save projections too
    every = [list(state) for state in product(range(4), repeat=3)]

    states = list(search(nested_rungs(3, shares), gains, lambda state: float(damages[list(state), heads].sum())))

    assert states[-1] == (3, 3, 3)
    for state in map(list, states):
        enough = [other for other in every if gains[other, heads].sum() >= gains[state, heads].sum()]
        assert damages[state, heads].sum() <= min(damages[other, heads].sum() for other in enough) + 1e-9


def test_what_heads_do_together_is_measured():
    """Heads 0 and 1 do the same: alone each is harmless, together they are not."""
    rungs = nested_rungs(3, np.outer([0, 1], np.ones(3)))
    gains = np.outer([0, 1], np.ones(3))
    states = list(search(rungs, gains, lambda state: state[0] + 1.1 * state[1] + 2 * state[2] + 9 * state[0] * state[1]))

    assert states == [(1, 0, 0), (1, 0, 1), (1, 1, 1)]


def test_few_moves_are_measured_at_a_time(monkeypatch):
    monkeypatch.setattr(budget, "WIDTH", 2)
    seen = []

    def damage(state):
        seen.append(state)
        return float(np.dot(state, range(1, 7)))

    steps = search(nested_rungs(6, np.outer([0, 1], np.ones(6))), np.outer([0, 1], np.ones(6)), damage)
    assert [next(steps) for _ in range(3)] == [(1, 0, 0, 0, 0, 0), (1, 1, 0, 0, 0, 0), (1, 1, 1, 0, 0, 0)]
    assert len(seen) == 1 + 6 + 3 * 2


def test_of_moves_that_do_no_damage_the_largest_is_made():
    rungs = nested_rungs(1, np.array([[0], [0.1], [1]]))

    states = list(search(rungs, np.array([[0], [1], [9]]), lambda state: (0, -5, -1)[state[0]]))

    assert states == [(2,)]


def test_rungs_hold_the_units_of_least_score_and_their_share():
    rows = np.arange(1, 17).reshape(2, 8, 1) * np.ones((2, 8, 8))
    rungs = make_rungs({"head": [rows[:1], rows[1:]], "row": [rows[:1], rows[1:]]}, [1, 1])

    assert rungs.granularities == ("none", "row", "row", "head")
    assert rungs.start == 0
    for mask, frozen in zip(rungs.masks, (0, 2, 4, 8), strict=True):
        assert_array_equal(mask, np.broadcast_to((np.arange(8) < frozen)[:, None], (2, 8, 8)))
    np.testing.assert_allclose(rungs.shares[1], [(1 + 2) / 36, (9 + 10) / 100])
    assert uniform_states(rungs) == [(1, 1), (2, 2)]


def test_rows_that_nothing_reads_are_where_the_search_starts():
    scores = np.ones((2, 10, 10))
    scores[1, 1:] = 0
    rungs = make_rungs({"row": [scores], "weight": [scores]}, [2])

    assert rungs.start == 1
    assert_array_equal(rungs.masks[1], scores == 0)
    assert_array_equal(rungs.shares[1], [0, 0])
    first = next(search(rungs, np.zeros(rungs.shares.shape), lambda state: 0.0))
    assert first == (1, 1)
    assert budget.granularity(rungs, first) == "row"
    assert budget.granularity(rungs, (0, 0)) == "none"
    assert budget.granularity(rungs, (len(rungs.masks) - 1, 1)) == "mixed"
    assert make_rungs({"head": [scores]}, [2]).granularities == ("none", "head")


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8), st.data())
def test_the_front_is_what_no_other_trial_beats(points, data):
    trials = [trial(saved / 4, top1 / 4) for saved, top1 in points]
    chosen = data.draw(st.integers(0, len(points) - 1))
    marked = mark(trials, chosen)

    assert sorted((each.macs_saved, each.top1) for each in marked) == [(each.macs_saved, each.top1) for each in marked]
    assert [each.macs_saved for each in marked if each.chosen] == [trials[chosen].macs_saved]
    for each in marked:
        as_good = [other for other in trials if other.macs_saved >= each.macs_saved and other.top1 >= each.top1]
        assert each.pareto == all((other.macs_saved, other.top1) == (each.macs_saved, each.top1) for other in as_good)
    front = [each for each in marked if each.pareto]
    assert [each.top1 for each in front] == sorted((each.top1 for each in front), reverse=True)


def test_the_most_is_saved_that_keeps_the_accuracy():
    trials = [trial(0, 0.8), trial(0.1, 0.81), trial(0.2, 0.795), trial(0.3, 0.79)]

    assert choose(budget_of(keep_accuracy=0.005), trials) == 2
    assert choose(budget_of(keep_accuracy=0), trials) == 1
    with pytest.raises(UserError, match=r"--keep-accuracy: .* is 0\.50 points of top-1, for 20\.00% of the MACs; allow more"):
        choose(budget_of(keep_accuracy=0.001), [trials[0], *trials[2:]])


def test_the_best_is_kept_that_saves_enough():
    trials = [trial(0, 0.8), trial(0.1, 0.7), trial(0.2, 0.75), trial(0.15, 0.75), trial(0.3, 0.6)]

    assert choose(budget_of(save_macs=0.1), trials) == 2
    assert choose(budget_of(save_macs=0.3), trials) == 4
    with pytest.raises(UserError, match=r"saves 50\.00%; the 300 evaluations reached 30\.00% at 60\.00% top-1 \(nothing frozen: 80\.00%\)"):
        choose(budget_of(save_macs=0.5), trials)


def test_a_search_ends_where_its_budget_does():
    base = trial(0, 0.8)
    keeping, saving = budget_of(keep_accuracy=0.1), budget_of(save_macs=0.2)

    assert [keeping.ends(trial(0.1, top1), base) for top1 in (0.9, 0.6, 0.59)] == [False, False, True]
    assert [saving.ends(trial(saved, 0.1), base) for saved in (0.1, 0.2, 0.3)] == [False, True, True]


def test_the_cross_entropy_is_that_of_the_definition():
    logits, targets = np.array([[0.0, np.log(3)], [1000.0, -1000.0]]), np.array([[0.25, 0.75], [1.0, 0.0]])

    assert cross_entropy(logits, targets) == pytest.approx((0.25 * np.log(4) + 0.75 * np.log(4 / 3)) / 2)


def test_the_table_is_read_as_it_was_written(tmp_path):
    trials = mark([trial(0, 0.8), trial(0.1, 0.7), trial(1 / 3, 0.1)], 1)
    path = tmp_path / "x.front.csv"
    write_front(path, trials)

    header, *lines = path.read_text().splitlines()
    assert header == "granularity,tau,macs_saved,top1,images,loss_change,pareto,chosen,removed"
    assert lines[1] == "head,0.1,0.1,0.7,100,0.0,true,true,0.0"
    assert read_front(path) == trials


@pytest.mark.parametrize(
    ("tile", "unit"), [((2, 4), "tile:2x4"), ((1, 2), "tile:1x2"), ((4, 17), "row"), ((17, 3), "column"), ((1, 1), "weight")]
)
def test_tiles_are_read_off_the_masks(tile, unit):
    program = random_program(Shape(seed=1, side=8, freeze="all"))
    (op,) = (op for op in program.operations if isinstance(op, Attention))
    assert op.frozen is not None
    tokens = np.arange(op.tokens)
    checkers = (tokens[:, None] // tile[0] + tokens // tile[1]) % 2 == 0
    mask = np.broadcast_to(checkers, op.frozen.mask.shape)
    frozen = replace(op.frozen, mask=mask, codes=op.frozen.codes * mask)
    changed = replace(program, operations=tuple(replace(each, frozen=frozen) if each is op else each for each in program.operations))

    assert granularity(changed) == unit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--keep-accuracy", 1, "--tau", 0.2), "--tau: a budget chooses that itself; leave it out, or leave --keep-accuracy and"),
        (("--save-macs", "5%", "--order", "entropy"), "--order: a budget chooses that itself"),
        (("--keep-accuracy", 1, "--save-macs", "5%"), "--keep-accuracy and --save-macs: expected exactly one of them"),
        (
            ("--tau", 0.2, "--order", "kl"),
            "order: kl is measured for whole heads, got the granularity weight; freeze heads, or take output",
        ),
        (("--keep-accuracy", -1), "--keep-accuracy: expected 0 to 100 points of top-1 such as 0.5 or 0.5%, got '-1'"),
        (("--keep-accuracy", 1, "--softmax", "paper"), "--softmax: expected renormalised with a budget, got paper, under which"),
        (("--keep-accuracy", 1, "--granularity", "head,token"), "granularity: must be weight, row, column, head or tile:RxC"),
        (("--validation", "x.npz"), "--validation: belongs to a budget; give --keep-accuracy or --save-macs with it"),
        (("--evaluations", 9), "--evaluations: belongs to a budget"),
        (("--keep-accuracy", 1, "--evaluations", 22, "--limit", 8, "--granularity", "head"), "--evaluations: expected at least 23"),
        (
            ("--save-macs", "50%", "--limit", 8, "--granularity", "head"),
            "--save-macs: expected at most 19.17%, what freezing every head saves, got 50.00%",
        ),
        (
            ("--save-macs", "90%", "--limit", 8, "--granularity", "head,removed"),
            "what removing all heads but one of each block saves, got 90.00%",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, options, message):
    done = eamsim(*SOURCE, *options, "-o", tmp_path / "x.eam")

    assert (done.code, message in done.err) == (2, True), done.err
    assert list(tmp_path.iterdir()) == []


def test_too_few_evaluations_are_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "quantise_on", None)
    done = eamsim(*SOURCE, "--keep-accuracy", 1, "--evaluations", 20, "-o", tmp_path / "x.eam")

    assert (done.code, done.out) == (2, "")
    assert "--evaluations: expected at least 43 for this model and these granularities, got 20" in done.err


def build(out: Path, *options: object):
    """A budget on the digits: manifest, program and trials."""
    done = eamsim(*SOURCE, "--limit", 64, "-o", out, "--json", *options)
    assert done.code == 0, done.err
    return json.loads(done.out), artifact.read(out)[0], read_front(out.with_name(out.name + ".front.csv"))


@pytest.fixture(scope="module")
def saving(tmp_path_factory):
    return build(tmp_path_factory.mktemp("saving") / "x.eam", "--save-macs", "3%", "--granularity", "head,row", "--keep-unread")


def test_the_command_meets_a_budget_of_macs(saving):
    manifest, program, trials = saving
    (chosen,) = (each for each in trials if each.chosen)
    cost = count(program)
    nothing = trials[0]

    assert chosen.macs_saved >= 0.03
    assert chosen.macs_saved == 1 - cost.macs.full / cost.dense.full
    assert (nothing.granularity, nothing.macs_saved, nothing.loss_change, nothing.images) == ("none", 0, 0, 64)
    frozen = {(head["block"], head["head"]): head["tau"] for head in manifest["budget"]["heads"]}
    attentions = [op for op in program.operations if isinstance(op, Attention)]
    for block, op in enumerate(attentions):
        for head in range(op.heads):
            share = 0 if op.frozen is None else op.frozen.mask[0, head].mean()
            assert frozen.get((block, head), 0) == share
            assert (head in op.score_heads) == (share < 1)


def test_rows_that_nothing_reads_change_nothing(saving):
    _, program, trials = saving
    free = [each for each in trials if each.granularity == "row" and each.loss_change == 0]

    assert len(free) == 1
    tokens = next(op.tokens for op in program.operations if isinstance(op, Attention))
    assert free[0].tau == pytest.approx((tokens - 1) / tokens / 3)  # in one of three blocks


@pytest.mark.slow
def test_the_command_does_the_same_again(saving, tmp_path):
    manifest, _, _ = saving
    again, _, _ = build(tmp_path / "x.eam", "--save-macs", "0.03", "--granularity", "head,row", "--keep-unread")

    assert again["output"]["sha256"] == manifest["output"]["sha256"]
    assert again["budget"] == manifest["budget"]


@pytest.mark.slow
def test_the_command_keeps_accuracy_on_validation_images(tmp_path):
    data = np.load(DIGITS / "digits_test.npz")
    np.savez(tmp_path / "some.npz", images=data["images"][:100], labels=data["labels"][:100])
    choice = ("--keep-accuracy", 4, "--granularity", "head", "--validation", tmp_path / "some.npz")
    manifest, program, trials = build(tmp_path / "x.eam", *choice)
    cost = count(program)
    (chosen,) = (each for each in trials if each.chosen)

    assert manifest["budget"]["judged"]["labelled"]
    assert chosen.images == 100
    assert trials[-1].top1 < trials[0].top1 - 0.08  # where the search ended
    assert chosen.macs_saved == max(each.macs_saved for each in trials if each.top1 >= trials[0].top1 - 0.04)
    assert chosen.macs_saved == 1 - cost.macs.full / cost.dense.full
    assert {each.granularity for each in trials} == {"none", "head"}


@pytest.mark.slow
def test_without_labels_agreement_judges(tmp_path):
    images = np.load(DIGITS / "digits_calib.npz")["images"][:64]
    np.savez(tmp_path / "images.npz", images=images)
    out = tmp_path / "x.eam"
    done = eamsim(
        "build", f"local-dir:{DIGITS}", "--calib", tmp_path / "images.npz", "--save-macs", "1%", "--granularity", "head", "-o", out
    )

    assert done.code == 0, done.err
    assert "top-1: agreement with the model with nothing frozen, on the 64 images that judged; nothing frozen: 100.00%" in done.out
    assert "x.eam.front.csv: " in done.out
    refused = eamsim(*SOURCE, "--validation", tmp_path / "images.npz", "--keep-accuracy", 5, "-o", out)
    assert (refused.code, "images.npz: expected labelled images" in refused.err) == (2, True)


def test_a_later_build_leaves_no_front_of_another_program(tmp_path):
    out = tmp_path / "x.eam"
    (tmp_path / "x.eam.front.csv").touch()
    done = eamsim(*SOURCE, "--limit", 8, "--tau", 0, "-o", out)

    assert done.code == 0, done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.eam", "x.eam.json"]
