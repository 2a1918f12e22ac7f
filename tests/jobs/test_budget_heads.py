"""Whole heads: removed within a budget, and frozen in the order of what the answers change."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from command_line import eamsim
from numpy.testing import assert_array_equal

pytest.importorskip("timm", reason="needs the extra 'reference'")

from eamsim import artifact, golden
from eamsim.engine import Engine
from eamsim.inputs.images import open_images
from eamsim.jobs.search import budget
from eamsim.jobs.search.budget import Rungs, make_rungs, search, uniform_states
from eamsim.jobs.search.front import read_front
from eamsim.jobs.search.head_order import head_scores
from eamsim.progress import silent
from reference.attention.collect import attention_statistics, quantise_on
from reference.models.load import load_model

DIGITS = Path(str(files("eamsim") / "data" / "digits"))
SOURCE = ("build", f"local-dir:{DIGITS}", "--calib", DIGITS / "digits_calib.npz", "--limit", 64, "--no-compensate")


def removable(heads: list[int]) -> Rungs:
    """Rungs of whole heads, frozen or removed."""
    return make_rungs({"head": [np.ones((count, 2, 2)) for count in heads]}, heads, removable=True)


def test_a_head_is_removed_where_that_costs_less_per_mac_but_for_the_last_of_a_block():
    rungs, gains = removable([2, 1]), np.outer([0, 1, 2], np.ones(3))
    gains[2, 2] = 0  # the one head of its block
    damages = np.array([[0, 0, 0], [3, 1, 8], [4, 9, np.nan]])  # to freeze head 1 is cheapest, to remove head 0 comes next

    states = list(search(rungs, gains, lambda state: float(damages[list(state), range(3)].sum())))

    assert states == [(0, 1, 0), (2, 1, 0), (2, 1, 1)]  # and head 1 never follows head 0
    assert rungs.granularities == ("none", "head", "removed")
    assert [rungs.removed(state) for state in states] == [[[], []], [[0], []], [[0], []]]
    assert [rungs.stands(state) for state in ((2, 1, 1), (2, 2, 1), (0, 0, 2))] == [True, False, False]
    assert [budget.granularity(rungs, state) for state in ((0, 2, 0), (1, 2, 0))] == ["removed", "mixed"]
    assert rungs.furthest == (1, 2, 1)
    assert uniform_states(rungs) == []


def test_heads_may_only_go():
    rungs = make_rungs({"head": [np.ones((3, 2, 2))]}, [3], freezable=False, removable=True)

    assert rungs.granularities == ("none", "removed")
    assert rungs.furthest == (0, 1, 1)
    assert list(search(rungs, np.outer([0, 1], np.ones(3)), lambda state: float(np.dot(state, [3, 1, 2])))) == [(0, 1, 0), (0, 1, 1)]


@pytest.mark.parametrize("granularities", ["head,row,removed", "removed"])
def test_the_command_removes_heads(tmp_path, granularities):
    out = tmp_path / "x.eam"
    done = eamsim(*SOURCE, "-o", out, "--json", "--save-macs", "6%", "--granularity", granularities, "--order", "kl")
    assert done.code == 0, done.err
    manifest, program, trials = json.loads(done.out), artifact.read(out)[0], read_front(tmp_path / "x.eam.front.csv")
    (chosen,) = (each for each in trials if each.chosen)
    heads = manifest["budget"]["heads"]
    removed = [(each["block"], each["head"]) for each in heads if each["granularity"] == "removed"]
    all_heads = [4, 4, 4]

    assert manifest["budget"]["order"] == "kl"
    alone = [(each["block"], each["head"]) for each in manifest["budget"]["alone"] if each["granularity"] == "removed"]
    assert alone == [(block, head) for block in range(3) for head in range(4)]
    assert {each["granularity"] for each in manifest["budget"]["alone"]} == {"head", "removed"} & {*granularities.split(",")}
    assert all(each["damage"] > 0 for each in manifest["budget"]["alone"])
    assert removed
    assert [op.heads for op in program.attentions] == [n - sum(b == block for b, _ in removed) for block, n in enumerate(all_heads)]
    assert chosen.removed == len(removed) / sum(all_heads)
    assert trials[0].macs_saved == 0
    assert chosen.macs_saved >= 0.06
    assert {each.granularity for each in trials} == {"none", "removed"} or granularities != "removed"
    assert all(each["tau"] == 0 for each in heads if each["granularity"] == "removed")
    assert [each for each in trials if each.granularity == "row" and each.macs_saved == 0] == []  # of rows that are not there
    images = np.load(DIGITS / "digits_test.npz")["images"][:2]
    assert_array_equal(Engine(program).run(images), [golden.run(program, image) for image in images])
    refused = eamsim("compare", tmp_path / "x.eam", f"local-dir:{DIGITS}", "--data", DIGITS / "digits_test.npz")
    assert (refused.code, "a program with removed heads has no fake quantisation here" in refused.err) == (2, True), refused.err


def test_the_order_kl_freezes_the_heads_that_change_the_answers_least(tmp_path):
    options = ("--tau", 0.25, "--granularity", "head", "--scope", "model", "--order", "kl", "--softmax", "renormalised")
    done = eamsim(*SOURCE, "-o", tmp_path / "x.eam", "--json", *options)
    assert done.code == 0, done.err
    program, _ = artifact.read(tmp_path / "x.eam")
    model = load_model(f"local-dir:{DIGITS}")
    images = open_images([DIGITS / "digits_calib.npz"], model.preprocessing, 64)
    calibrated = quantise_on(model, images, 32, silent, compensated=False)
    statistics = attention_statistics(calibrated, images, silent)
    scores = [each[:, 0, 0] for each in head_scores(calibrated, statistics, images, silent)]

    order = np.argsort(np.concatenate(scores))
    frozen = np.concatenate([np.zeros(4, bool) if op.frozen is None else op.frozen.mask.all(axis=(0, 2, 3)) for op in program.attentions])
    assert_array_equal(np.flatnonzero(frozen), np.sort(order[:3]))
    assert min(map(min, scores)) > 0
