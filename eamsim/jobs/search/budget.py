"""Which heads are frozen, in what units and how far, and which are removed, so that a budget of accuracy or of work is met."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from eamsim.choice import finite
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.jobs.search.pareto import undominated
from reference.attention.freeze import Freezing, chosen_masks

REMOVED = "removed"
"""The rung beyond the whole head frozen: the head is gone but for its mean output."""
RATES = (0.25, 0.5)
"""Shares of a head's weights that may be frozen, besides all of them."""
WIDTH = 6
"""Moves that are measured before the best of them is made."""
SEARCH_IMAGES = 1024
"""Calibration images on which moves are compared."""


@dataclass(frozen=True)
class Budget:
    """What a mask must keep or save: exactly one of two fractions, the top-1 that may be lost or the MACs to be saved.

    macs: MACs of a program; granularities: as `Freezing`, the units to choose from, and REMOVED where heads may go; validation:
    labelled images that judge, the calibration images if empty; evaluations: the most programs that are run; order: what moves cost,
    the cross-entropy of the labels, or of the answers with nothing frozen, which is `kl` but for a constant. Raises UserError for
    anything else.
    """

    macs: Callable[[Verified], int]
    keep_accuracy: float | None = None
    save_macs: float | None = None
    granularities: tuple[str, ...] = ("head", "row", "column", "tile:16x16", "weight", REMOVED)
    validation: Sequence[Path] = ()
    evaluations: int = 300
    order: Literal["loss", "kl"] = "loss"

    def __post_init__(self) -> None:
        given = [budget for budget in (self.keep_accuracy, self.save_macs) if budget is not None]
        if len(given) != 1:
            raise UserError("--keep-accuracy and --save-macs: expected exactly one of them; keep the other out")
        if not 0 <= given[0] <= 1:
            raise UserError(f"--keep-accuracy and --save-macs: expected 0 to 100 points or %, got {100 * given[0]:g}")
        for granularity in self.frozen:
            Freezing(0, granularity, "model")

    @property
    def frozen(self) -> tuple[str, ...]:
        """The units that may be frozen."""
        return tuple(each for each in self.granularities if each != REMOVED)

    def check(self, heads: int) -> None:
        """UserError unless its evaluations are enough for a model of so many heads: the uniform states, and the first moves of a search."""
        states = len(RATES) * len({*self.frozen} - {"head"})
        if self.evaluations < (needed := 5 + states + heads * (1 + (REMOVED in self.granularities)) + WIDTH):
            raise UserError(f"--evaluations: expected at least {needed} for this model and these granularities, got {self.evaluations}")

    def ends(self, trial: BudgetTrial, base: BudgetTrial) -> bool:
        """Whether a search has gone far enough: the MACs are saved, or twice the loss allowed is exceeded, so that chance ends none."""
        if self.save_macs is not None:
            return self.met(trial, base)
        return base.top1 - trial.top1 > 2 * self.loss_allowed

    def met(self, trial: BudgetTrial, base: BudgetTrial) -> bool:
        """base: nothing frozen."""
        if self.save_macs is not None:
            return trial.macs_saved >= self.save_macs
        return base.top1 - trial.top1 <= self.loss_allowed

    @property
    def loss_allowed(self) -> float:
        """Of top-1, a fraction; a loss of exactly the budget is within it, however it is rounded."""
        assert self.keep_accuracy is not None
        return self.keep_accuracy + 1e-9


@dataclass(frozen=True)
class BudgetTrial:
    """One state that was judged, a row of the table.

    tau: share of frozen weights, among those of all heads; macs_saved, top1: fractions, the latter of `images`; loss_change: how much
    their cross-entropy grew, in nats; pareto: no other trial saves as much and classifies as well, and one of them better; removed:
    share of removed heads.
    """

    granularity: str
    tau: float
    macs_saved: float
    top1: float
    images: int
    loss_change: float
    pareto: bool = False
    chosen: bool = False
    removed: float = 0.0


@dataclass(frozen=True, eq=False)
class Rungs:
    """The ways to save a head's work: first not at all, then parts of it frozen, then the whole head, last its removal, where these may be.

    granularities: of each rung, `none` of the first, REMOVED of the last if at all; masks: of each rung and head, the heads of all
    blocks in a row, bool [windows * tokens, tokens], a head's maps below one another; shares: float [rungs, heads], what a rung is
    expected to change of what freezing the whole head changes; start: the rung that every head can be on at no loss, 0 or 1; heads: of
    each block.
    """

    granularities: tuple[str, ...]
    masks: Sequence[Sequence[np.ndarray]]
    shares: np.ndarray
    start: int
    heads: Sequence[int]

    @property
    def whole(self) -> int:
        """The last rung of freezing: a head that is wholly frozen, or not at all where heads may only go."""
        return max(rung for rung, granularity in enumerate(self.granularities) if granularity != REMOVED)

    def removed(self, state: State) -> list[list[int]]:
        """Of each block, the heads that are gone."""
        numbered = iter(state)
        return [[head for head in range(count) if self.granularities[next(numbered)] == REMOVED] for count in self.heads]

    def stands(self, state: State) -> bool:
        """Whether every block keeps a head."""
        return all(len(gone) < count for gone, count in zip(self.removed(state), self.heads, strict=True))

    @property
    def furthest(self) -> State:
        """The state that saves most: all heads wholly frozen, or removed but for one of each block."""
        return tuple(self.whole if head == 0 else len(self.granularities) - 1 for count in self.heads for head in range(count))


State = tuple[int, ...]
"""The rung of every head."""


def make_rungs(scores: Mapping[str, Sequence[np.ndarray]], heads: Sequence[int], freezable: bool = True, removable: bool = False) -> Rungs:
    """Of every head, at all RATES of these granularities, the units of least score of each of its maps.

    scores: per block [maps, tokens, tokens], infinite where a pair takes no part; heads: of each block, whose maps come window by
    window; freezable, removable: whether whole heads may be frozen, and go. Where rows may be frozen, those that nothing reads
    (score 0) make the rung to start on.
    """
    split = {granularity: _by_head(blocks, heads) for granularity, blocks in scores.items()}
    live = [np.isfinite(score) for score in next(iter(split.values()))]
    found = [("none", [np.zeros_like(head) for head in live], np.zeros(len(live)))]

    def add(granularity: str, masks: list[np.ndarray]) -> None:
        if not any(all(map(np.array_equal, masks, other)) for _, other, _ in found):
            found.append((granularity, masks, np.array([*map(_share, split[granularity], masks)])))

    if "row" in split:
        unread = [(score == 0).all(axis=1, keepdims=True) for score in split["row"]]
        add("row", [np.broadcast_to(rows, head.shape) for rows, head in zip(unread, live, strict=True)])
    start = len(found) - 1
    for granularity, blocks in scores.items():
        for rate in () if granularity == "head" else RATES:
            add(granularity, _by_head(chosen_masks(blocks, Freezing(rate, granularity)), heads))
    found += [(each, live, np.ones(len(live))) for each in ("head",) * freezable + (REMOVED,) * removable]
    granularities, masks, shares = zip(*found, strict=True)
    return Rungs(granularities, masks, np.stack(shares), start, tuple(heads))


def _by_head(blocks: Sequence[np.ndarray], heads: Sequence[int]) -> list[np.ndarray]:
    """The maps [maps, tokens, tokens] of every block as one array a head, [windows * tokens, tokens]."""
    found = []
    for layer, count in zip(blocks, heads, strict=True):
        tokens = layer.shape[-1]
        found += list(layer.reshape(-1, count, tokens, tokens).swapaxes(0, 1).reshape(count, -1, tokens))
    return found


def _share(score: np.ndarray, mask: np.ndarray) -> float:
    """The part of a head's score that is under the mask; pairs that take no part have none."""
    whole = score.sum(where=np.isfinite(score))
    return np.where(mask, score, 0).sum() / (whole if whole > 0 else 1)


def search(rungs: Rungs, gains: np.ndarray, damage: Callable[[State], float]) -> Iterator[State]:
    """States of ever more frozen and removed heads, each one move from the one before: the measured least damage per MAC saved.

    A move raises one head to a rung that contains its present one. Freezing each whole head alone, and removing it, is measured first;
    a smaller rung is expected to do its share of the damage of freezing. Then, again and again, the WIDTH moves of least expected
    damage per MAC are measured from where the search stands, the best is made, and what was measured is remembered for the next time.
    gains: float [rungs, heads], MACs each rung saves alone, 0 where that cannot be had.
    """
    heads = range(gains.shape[1])
    state: State = (rungs.start,) * len(heads)
    if rungs.start:
        yield state

    def measure(state: State) -> float:
        return finite(damage(state), "budget")

    reached = measure(state)
    expected = rungs.shares * ([measure(moved(state, head, rungs.whole)) - reached for head in heads] if rungs.whole else 0.0)
    for rung in range(rungs.whole + 1, len(gains)):
        expected[rung] = [measure(moved(state, head, rung)) - reached if gains[rung, head] else np.inf for head in heads]

    def price(move: tuple[int, int]) -> tuple[float, float, float]:
        """Damage per MAC; of moves that seem to do none, or even good, those that save most come first, then those that do most good."""
        head, rung = move
        gain, damage = gains[rung, head] - gains[state[head], head], expected[rung, head] - expected[state[head], head]
        return max(damage, 0) / gain, -gain, damage

    def moves() -> list[tuple[int, int]]:
        found = [(head, rung) for head in heads for rung in _above(_masks_of(rungs, head), gains[:, head], state[head])]
        return [move for move in found if rungs.stands(moved(state, *move))]

    while possible := moves():
        measured = {move: measure(moved(state, *move)) for move in sorted(possible, key=price)[:WIDTH]}
        for (head, rung), after in measured.items():
            expected[rung, head] = expected[state[head], head] + after - reached
        best = min(measured, key=price)
        state, reached = moved(state, *best), measured[best]
        yield state


def moved(state: State, head: int, rung: int) -> State:
    """The state with this head, numbered through all blocks, on this rung."""
    return (*state[:head], rung, *state[head + 1 :])


def _masks_of(rungs: Rungs, head: int) -> np.ndarray:
    """bool [rungs, windows * tokens, tokens]."""
    return np.stack([masks[head] for masks in rungs.masks])


def _above(masks: np.ndarray, gains: np.ndarray, rung: int) -> np.ndarray:
    """The rungs of one head that contain this one and save more."""
    return np.flatnonzero((masks[rung] <= masks).all(axis=(1, 2)) & (gains > gains[rung]))


def uniform_states(rungs: Rungs) -> list[State]:
    """Every head on the same rung, for comparison."""
    return [(rung,) * rungs.shares.shape[1] for rung in range(rungs.start + 1, rungs.whole)]


def granularity(rungs: Rungs, state: State) -> str:
    """What all that is frozen or removed in a state is made of, `none` or `mixed`."""
    used = {rungs.granularities[rung] for head, rung in enumerate(state) if rungs.masks[rung][head].any()}
    return used.pop() if len(used) == 1 else "mixed" if used else "none"


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean over the images of -sum_c targets_c log softmax(logits)_c, in nats; both float [images, classes]."""
    return float(-(targets * log_softmax(logits)).sum(axis=1).mean())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Of float [images, classes], over the classes."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def choose(budget: Budget, trials: Sequence[BudgetTrial]) -> int:
    """Index of the trial that saves most within a budget of accuracy, or is best of those that save enough; the first: nothing frozen.

    Raises UserError with the best that can be had.
    """
    base = trials[0]
    meets = [index for index, trial in enumerate(trials) if budget.met(trial, base) and trial.macs_saved > 0]
    if budget.save_macs is not None:
        if not meets:
            most = max(trials, key=lambda trial: trial.macs_saved)
            raise UserError(
                f"--save-macs: expected a mask that saves {budget.save_macs:.2%}; the {budget.evaluations} evaluations reached "
                f"{most.macs_saved:.2%} at {most.top1:.2%} top-1 (nothing frozen: {base.top1:.2%}); allow more --evaluations"
            )
        return max(meets, key=lambda index: (trials[index].top1, trials[index].macs_saved))
    if not meets:
        least = max(trials[1:], key=lambda trial: (trial.top1, trial.macs_saved))
        lost = 100 * (base.top1 - least.top1)
        raise UserError(
            f"--keep-accuracy: every mask tried loses more; the least loss is {lost:.2f} points of top-1, "
            f"for {least.macs_saved:.2%} of the MACs; allow more"
        )
    return max(meets, key=lambda index: (trials[index].macs_saved, trials[index].top1))


def mark(trials: Sequence[BudgetTrial], chosen: int) -> list[BudgetTrial]:
    """The trials in the order of what they save, with `pareto` and `chosen` set."""
    front = undominated(-np.array([(trial.macs_saved, trial.top1) for trial in trials]))
    marked = [replace(trial, pareto=bool(front[index]), chosen=index == chosen) for index, trial in enumerate(trials)]
    return sorted(marked, key=lambda trial: (trial.macs_saved, trial.top1))
