"""The budget search on real programs: what a state saves, what it does to the logits, and which one is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from eamsim import engine
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.inputs.images import ImageSet
from eamsim.jobs.measure import accuracy
from eamsim.jobs.search.budget import (
    SEARCH_IMAGES,
    WIDTH,
    Budget,
    BudgetTrial,
    Rungs,
    State,
    choose,
    cross_entropy,
    granularity,
    log_softmax,
    mark,
    search,
    uniform_states,
)
from eamsim.program import Linear, Raw
from reference.attention.freeze import FrozenMap
from reference.lowering.frozen import with_frozen
from reference.quantisation.quantisers import LogSqrt2
from reference.quantisation.repq import Calibrated

if TYPE_CHECKING:
    from eamsim.progress import Progress

BATCH = 64


@dataclass(frozen=True, eq=False)
class States:
    """Makes the programs of states.

    dense: nothing frozen, softmax renormalised; grids, mean [maps, tokens, tokens]: per block; logit_scale: of the integer logits.
    """

    dense: Verified
    grids: Sequence[LogSqrt2]
    mean: Sequence[np.ndarray]
    logit_scale: float
    rungs: Rungs
    macs: Callable[[Verified], int]

    def masks(self, state: State) -> list[np.ndarray]:
        """Of every block, bool [maps, tokens, tokens], window by window."""
        chosen, found = [self.rungs.masks[rung][head] for head, rung in enumerate(state)], []
        for layer, op in zip(self.mean, self.dense.attentions, strict=True):
            own, chosen = np.stack(chosen[: op.heads]), chosen[op.heads :]
            found.append(own.reshape(op.heads, -1, *layer.shape[1:]).swapaxes(0, 1).reshape(layer.shape))
        return found

    def tau(self, state: State) -> float:
        """The share of frozen weights among those of all windows that can be."""
        frozen = live = 0
        for op, mask in zip(self.dense.attentions, self.masks(state), strict=True):
            pairs = np.ones((op.windows, 1, op.tokens, op.tokens), np.bool_) if op.excluded is None else ~op.excluded[:, None]
            frozen += int(np.count_nonzero(mask.reshape(-1, op.heads, op.tokens, op.tokens) & pairs))
            live += op.heads * int(np.count_nonzero(pairs))
        return frozen / live

    def program(self, state: State) -> Verified:
        """The program of this state; blocks of which nothing is frozen hold no map."""
        maps = zip(self.masks(state), self.mean, strict=True)
        frozen = [FrozenMap(mask, mean.astype(np.float64)) if mask.any() else None for mask, mean in maps]
        return with_frozen(self.dense, frozen, self.grids)

    def saved(self, state: State) -> float:
        """The fraction of all MACs."""
        return 1 - self.macs(self.program(state)) / self.dense_macs

    @cached_property
    def dense_macs(self) -> int:
        return self.macs(self.dense)

    def gains(self) -> np.ndarray:
        """What each rung of each head saves alone: float [rungs, heads]."""
        rungs, heads = self.rungs.shares.shape
        alone = np.eye(heads, dtype=int)
        return np.array([[self.saved(tuple(rung * alone[head])) for head in range(heads)] for rung in range(rungs)])


def build_within(
    states: States, budget: Budget, calibration: ImageSet, judged: ImageSet, progress: Progress
) -> tuple[Verified, dict[str, Any]]:
    """The program within the budget, and how it was found as JSON values: every trial, and what is frozen of which head.

    calibration: SEARCH_IMAGES of them compare moves, by the cross-entropy; judged: they decide, by top-1. Both by their labels, or,
    where they have none of the model's, by what the program with nothing frozen answers. Raises UserError where no trial is within
    the budget.
    """
    rungs, heads = states.rungs.shares.shape
    most = states.saved((rungs - 1,) * heads)
    if budget.save_macs is not None and budget.save_macs > most:
        raise UserError(f"--save-macs: expected at most {most:.2%}, what freezing every head saves, got {budget.save_macs:.2%}")
    with progress("programs run, at most", budget.evaluations) as advance:
        tried = _explore(states, budget, calibration, judged, advance)
    trials = [trial for trial, _ in tried]
    chosen = choose(budget, trials)
    state = tried[chosen][1]
    return states.program(state), {"trials": [asdict(trial) for trial in mark(trials, chosen)], "heads": _heads(states, state)}


def _explore(
    states: States, budget: Budget, calibration: ImageSet, judged: ImageSet, advance: Callable[[int], None]
) -> list[tuple[BudgetTrial, State]]:
    """What was tried: nothing frozen, the uniform states, then the search until the budget ends it or the evaluations do."""
    runs = 0

    def logits(state: State, batches: Iterable[np.ndarray]) -> np.ndarray:
        nonlocal runs
        run = engine.Engine(states.program(state)).run
        found = np.concatenate([run(batch) for batch in batches])
        runs += 1
        advance(1)
        return states.logit_scale * found

    nothing = (0,) * states.rungs.shares.shape[1]
    some = calibration.spread(SEARCH_IMAGES)
    compared = list(some.batches(BATCH))
    targets, _ = _truth(some, logits(nothing, compared))
    answers = logits(nothing, judged.batches(BATCH))
    judging, labels = _truth(judged, answers)
    loss = cross_entropy(answers, judging)

    def judge(state: State, found: np.ndarray) -> tuple[BudgetTrial, State]:
        top1, change = accuracy(found, labels).top1, cross_entropy(found, judging) - loss
        return BudgetTrial(granularity(states.rungs, state), states.tau(state), states.saved(state), top1, len(judged), change), state

    tried = [judge(nothing, answers)]
    tried += [judge(state, logits(state, judged.batches(BATCH))) for state in uniform_states(states.rungs)]
    for state in search(states.rungs, states.gains(), lambda state: cross_entropy(logits(state, compared), targets)):
        tried.append(judge(state, logits(state, judged.batches(BATCH))))
        if budget.ends(tried[-1][0], tried[0][0]) or runs + WIDTH + 1 > budget.evaluations:
            break
    return tried


def logit_scale(calibrated: Calibrated, program: Verified) -> float:
    """What one step of the integer logits stands for."""
    head = program.operations[-1]
    assert isinstance(head, Linear)
    assert isinstance(head.epilogue, Raw)
    return float(calibrated.acc_scales(head.out.name)[0]) * 2.0 ** int(head.epilogue.shift[0]) / int(head.epilogue.multiplier[0])


def _truth(images: ImageSet, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [images, classes] and labels [images]: the images' own if they are the model's, else what `answers` hold for true."""
    classes = answers.shape[1]
    if images.labels is not None:
        return np.eye(classes)[images.labels], images.labels
    return np.exp(log_softmax(answers)), answers.argmax(axis=1)


def _heads(states: States, state: State) -> list[dict[str, Any]]:
    """What is frozen, head by head."""
    places = [(block, head) for block, op in enumerate(states.dense.attentions) for head in range(op.heads)]
    rows = []
    for number, ((block, head), rung) in enumerate(zip(places, state, strict=True)):
        share = float(states.rungs.masks[rung][number].sum() / states.rungs.masks[-1][number].sum())
        if share:
            rows.append({"block": block, "head": head, "granularity": states.rungs.granularities[rung], "tau": share})
    return rows
