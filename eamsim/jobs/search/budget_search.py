"""The budget search on real programs: what a state saves, what it does to the logits, and which one is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from eamsim import engine
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.inputs.images import ImageSet
from eamsim.jobs.measure import accuracy
from eamsim.jobs.search.budget import (
    REMOVED,
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
    moved,
    search,
    uniform_states,
)
from eamsim.program import Linear, Raw
from reference.attention.freeze import FrozenMap
from reference.lowering.frozen import with_frozen
from reference.lowering.removed import MeanOutput, mean_outputs, without_heads
from reference.quantisation.quantisers import LogSqrt2
from reference.quantisation.repq import Calibrated

if TYPE_CHECKING:
    from eamsim.progress import Progress

BATCH = 64


@dataclass(frozen=True, eq=False)
class States:
    """Makes the programs of states.

    dense: nothing frozen, softmax renormalised; grids, mean [maps, tokens, tokens]: per block; outputs: of the heads of `dense`, by the
    names of its Attentions; logit_scale: of the integer logits.
    """

    dense: Verified
    grids: Sequence[LogSqrt2]
    mean: Sequence[np.ndarray]
    outputs: Mapping[str, MeanOutput]
    logit_scale: float
    rungs: Rungs
    macs: Callable[[Verified], int]

    def masks(self, state: State) -> list[np.ndarray]:
        """What is frozen of every block, bool [maps, tokens, tokens], window by window; of heads that are removed nothing."""
        rungs, numbered, found = self.rungs, iter(enumerate(state)), []
        for layer, count in zip(self.mean, rungs.heads, strict=True):
            own = np.stack([rungs.masks[0 if rung > rungs.whole else rung][head] for head, rung in islice(numbered, count)])
            found.append(own.reshape(count, -1, *layer.shape[1:]).swapaxes(0, 1).reshape(layer.shape))
        return found

    def tau(self, state: State) -> float:
        """The share of frozen weights among those of all windows that can be."""
        frozen = live = 0
        for op, mask in zip(self.dense.attentions, self.masks(state), strict=True):
            pairs = np.ones((op.windows, 1, op.tokens, op.tokens), np.bool_) if op.excluded is None else ~op.excluded[:, None]
            pairs = pairs[:, :, : op.rows]
            frozen += int(np.count_nonzero(mask.reshape(-1, op.heads, op.tokens, op.tokens)[:, :, : op.rows] & pairs))
            live += op.heads * int(np.count_nonzero(pairs))
        return frozen / live

    def program(self, state: State) -> Verified:
        """The program of this state; blocks of which nothing is frozen hold no map."""
        removed, frozen = self.rungs.removed(state), []
        for mask, mean, count, gone in zip(self.masks(state), self.mean, self.rungs.heads, removed, strict=True):
            mask, mean = (_without(each, count, gone) for each in (mask, mean.astype(np.float64)))
            frozen.append(FrozenMap(mask, mean) if mask.any() else None)
        return with_frozen(without_heads(self.dense, removed, self.outputs), frozen, self.grids)

    def saved(self, state: State) -> float:
        """The fraction of all MACs."""
        return 1 - self.macs(self.program(state)) / self.dense_macs

    @cached_property
    def dense_macs(self) -> int:
        return self.macs(self.dense)

    def gains(self) -> np.ndarray:
        """What each rung of each head saves alone, 0 where that cannot be had: float [rungs, heads]."""
        rungs, heads = self.rungs.shares.shape
        alone = np.eye(heads, dtype=int)
        states = [[tuple(map(int, rung * alone[head])) for head in range(heads)] for rung in range(rungs)]
        return np.array([[self.saved(state) if self.rungs.stands(state) else 0.0 for state in row] for row in states])


def _without(layer: np.ndarray, heads: int, gone: Sequence[int]) -> np.ndarray:
    """Maps [maps, tokens, tokens] of so many heads, window by window, without those of some heads."""
    return np.delete(layer.reshape(-1, heads, *layer.shape[1:]), gone, axis=1).reshape(-1, *layer.shape[1:])


def build_within(
    states: States, budget: Budget, calibration: ImageSet, judged: ImageSet, progress: Progress
) -> tuple[Verified, dict[str, Any]]:
    """The program within the budget, and how it was found as JSON values: every trial, what is frozen of which head, and `_alone`.

    calibration: SEARCH_IMAGES of them compare moves, by the cross-entropy (`Budget.order`); judged: they decide, by top-1. Both by their
    labels, or, where they have none of the model's, by what the program with nothing frozen answers. Raises UserError where no trial
    is within the budget.
    """
    most = states.saved(states.rungs.furthest)
    if budget.save_macs is not None and budget.save_macs > most:
        how = "removing all heads but one of each block" if REMOVED in states.rungs.granularities else "freezing every head"
        raise UserError(f"--save-macs: expected at most {most:.2%}, what {how} saves, got {budget.save_macs:.2%}")
    with progress("programs run, at most", budget.evaluations) as advance:
        tried, damages = _explore(states, budget, calibration, judged, advance)
    trials = [trial for trial, _ in tried]
    chosen = choose(budget, trials)
    state = tried[chosen][1]
    return states.program(state), {
        "trials": [asdict(trial) for trial in mark(trials, chosen)],
        "heads": _heads(states, state),
        "alone": _alone(states.rungs, damages),
    }


def _explore(
    states: States, budget: Budget, calibration: ImageSet, judged: ImageSet, advance: Callable[[int], None]
) -> tuple[list[tuple[BudgetTrial, State]], dict[State, float]]:
    """What was tried: nothing frozen, the uniform states, then the search until the budget ends it or the evaluations do.

    And the damage of every state that was measured.
    """
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
    found = logits(nothing, compared)
    targets = np.exp(log_softmax(found)) if budget.order == "kl" else _truth(some, found)[0]
    answers = logits(nothing, judged.batches(BATCH))
    judging, labels = _truth(judged, answers)
    loss = cross_entropy(answers, judging)

    def judge(state: State, found: np.ndarray) -> tuple[BudgetTrial, State]:
        top1, change = accuracy(found, labels).top1, cross_entropy(found, judging) - loss
        removed = sum(map(len, states.rungs.removed(state))) / len(state)
        kind, tau, saved = granularity(states.rungs, state), states.tau(state), states.saved(state)
        return BudgetTrial(kind, tau, saved, top1, len(judged), change, removed=removed), state

    tried = [judge(nothing, answers)]
    tried += [judge(state, logits(state, judged.batches(BATCH))) for state in uniform_states(states.rungs)]
    damages: dict[State, float] = {}

    def damage(state: State) -> float:
        damages[state] = cross_entropy(logits(state, compared), targets)
        return damages[state]

    for state in search(states.rungs, states.gains(), damage):
        tried.append(judge(state, logits(state, judged.batches(BATCH))))
        if budget.ends(tried[-1][0], tried[0][0]) or runs + WIDTH + 1 > budget.evaluations:
            break
    return tried, damages


def _alone(rungs: Rungs, damages: Mapping[State, float]) -> list[dict[str, Any]]:
    """What it does to the cross-entropy, in nats, to freeze each head whole, or to remove it, it alone, where that was measured."""
    start = (rungs.start,) * sum(rungs.heads)
    places = [(block, head) for block, count in enumerate(rungs.heads) for head in range(count)]
    return [
        {"block": block, "head": head, "granularity": rungs.granularities[rung], "damage": damages[state] - damages[start]}
        for number, (block, head) in enumerate(places)
        for rung in range(max(rungs.whole, 1), len(rungs.granularities))
        if (state := moved(start, number, rung)) in damages
    ]


def heads_outputs(program: Verified, images: ImageSet, progress: Progress) -> dict[str, MeanOutput]:
    """The mean output of the heads over all images, by the names of the program's Attentions."""
    run, names = engine.Engine(program).run, {op.out.name for op in program.attentions}
    with progress("outputs of heads", len(images)) as advance:

        def batches() -> Iterator[dict[str, np.ndarray]]:
            for batch in images.batches(BATCH):
                yield run(batch, taps=lambda tap: tap in names)[1]
                advance(len(batch))

        return mean_outputs(program, batches())


def of_computed_rows(program: Verified, scores: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Per block [maps, tokens, tokens], infinite in rows that the program does not compute: they take no part."""
    return [np.where(np.arange(op.tokens)[:, None] < op.rows, layer, np.inf) for op, layer in zip(program.attentions, scores, strict=True)]


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
    """What is frozen or removed, head by head; the tau of one that is removed is 0."""
    rungs, places = states.rungs, [(block, head) for block, count in enumerate(states.rungs.heads) for head in range(count)]
    rows = []
    for number, ((block, head), rung) in enumerate(zip(places, state, strict=True)):
        share = float(rungs.masks[rung][number].sum() / rungs.masks[-1][number].sum())
        if share:
            tau = 0.0 if rung > rungs.whole else share
            rows.append({"block": block, "head": head, "granularity": rungs.granularities[rung], "tau": tau})
    return rows
