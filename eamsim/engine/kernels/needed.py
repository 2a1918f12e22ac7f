"""Which scores the softmax of a block needs: rows in groups that need the same panels of keys, keys in an order of their own.

What no pair of a group needs is not computed, and whatever stands in its place does not matter: the map says so pair by pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from eamsim.engine.ir.softmax import IN_SOFTMAX
from eamsim.engine.ir.tile import PANEL
from eamsim.engine.isa import copy_rows
from eamsim.engine.memory import Constants, whole_tiles
from eamsim.program import Attention

FIELDS = ("groups", "groups_window", "groups_head", "order", "ordered", "order_window", "order_head")
GROUP_COST = 50


@dataclass(frozen=True)
class Group:
    """Rows of a block, ascending, and whether any of them needs a panel of keys, bool [panels]."""

    rows: np.ndarray
    panels: np.ndarray

    @property
    def runs(self) -> np.ndarray:
        """First panel and panels of each run of needed ones, int64 [runs, 2]."""
        edges = np.flatnonzero(np.diff(self.panels.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
        return np.stack([edges[:, 0], edges[:, 1] - edges[:, 0]], axis=1)

    @property
    def cost(self) -> int:
        """In 2 ns of a Zen 4: a panel's exponents for each row, its products for whole tiles, each row's runs, and each group."""
        rows, panels = len(self.rows), int(np.count_nonzero(self.panels))
        return panels * (rows + 2 * whole_tiles(rows)) + len(self.runs) * rows + GROUP_COST

    def with_rows_of(self, other: Group) -> Group:
        return Group(np.sort(np.concatenate([self.rows, other.rows])), self.panels | other.panels)

    def numbers(self) -> list[int]:
        """[rows, runs, each row, first panel and panels of each run]."""
        return [len(self.rows), len(self.runs), *self.rows.tolist(), *self.runs.ravel().tolist()]


def plan_groups(op: Attention, pairs: np.ndarray, block_rows: int, constants: Constants) -> dict[str, Any]:
    """pairs: the map, uint8 [1 or windows, 1 or heads, 1 or rows, whole panels].

    At `groups` lie the starts of the blocks' lists [1 or windows, 1 or heads, blocks], counted from there, then the lists: the numbers
    of each group, last those of none.
    """
    windows, heads, _, columns = pairs.shape
    needed = (pairs & IN_SOFTMAX).reshape(windows, heads, -1, columns // PANEL, PANEL).any(axis=-1)
    needed = np.broadcast_to(needed, (windows, heads, op.rows, columns // PANEL)).reshape(windows * heads, op.rows, -1)
    blocks = [block for head in needed for block in np.split(head, range(block_rows, op.rows, block_rows))]
    starts, lists = [], []
    for block in blocks:
        starts.append(len(blocks) + len(lists))
        lists += [number for group in groups_of(block) for number in group.numbers()] + [0, 0]
    per_head = len(blocks) // (windows * heads)
    return {
        "groups": constants.add(np.array(starts + lists, np.int32)),
        "groups_window": heads * per_head if windows > 1 else 0,
        "groups_head": per_head if heads > 1 else 0,
    }


def groups_of(needed: np.ndarray) -> list[Group]:
    """Of a block, bool [rows, panels]: rows of like need together, and neighbours in the order of needs where that costs no more."""
    alike: dict[bytes, list[int]] = {}
    for row, panels in enumerate(needed):
        alike.setdefault(panels.tobytes(), []).append(row)
    groups: list[Group] = []
    for panels in sorted(alike):
        group = Group(np.array(alike[panels]), np.frombuffer(panels, bool))
        while groups and (joined := groups[-1].with_rows_of(group)).cost <= groups[-1].cost + group.cost:
            group = joined
            groups.pop()
        groups.append(group)
    return groups


def key_order(op: Attention) -> np.ndarray:
    """int32 [1 or maps, 1 or heads, tokens]: keys that some row needs, then wholly frozen columns.

    Neither sum over keys depends on their order. A logit bias that all windows share cannot follow maps that they do not share.
    """
    frozen, bias = op.frozen, op.logit_bias
    if frozen is None or op.softmax == "paper" or (bias is not None and len(bias) < len(frozen.mask)):
        return np.arange(op.tokens, dtype=np.int32)[None, None]
    return np.argsort(frozen.mask.all(axis=2), axis=-1, kind="stable").astype(np.int32)


def in_order(pairs: np.ndarray, order: np.ndarray) -> np.ndarray:
    """[windows, heads, rows, tokens], the last axis, keys, in their order."""
    return np.take_along_axis(pairs, order[:, :, None], axis=-1) if is_changed(order) else pairs


def is_changed(order: np.ndarray) -> bool:
    return bool((order != np.arange(order.shape[-1])).any())


def plan_order(order: np.ndarray, constants: Constants) -> dict[str, Any]:
    windows, heads, tokens = order.shape
    strides = {"order_window": heads * tokens if windows > 1 else 0, "order_head": tokens if heads > 1 else 0}
    return {"order": constants.add(order), "ordered": is_changed(order)} | strides


@njit
def first_group(op, window, head, top, ints):
    """Where the list of a block's groups starts."""
    place = op.groups + window % op.windows * op.groups_window + head * op.groups_head + top // op.block_rows
    return op.groups + np.int64(ints[place])


@njit
def group_at(start, ints):
    """Rows and runs of a group, int32, and where the next one starts; no rows at the end of the list."""
    first_run = start + 2 + np.int64(ints[start])
    following = first_run + 2 * np.int64(ints[start + 1])
    return ints[start + 2 : first_run], ints[first_run:following], following


@njit
def queries(op, window, slot, top, members, batch, codes, scratch):
    """q of a group's rows and the bytes between them: as they lie where the rows follow each other, else copied behind all codes."""
    count, head_dim = len(members), op.head_dim
    q = codes[op.q * batch + (window * op.query_rows + top) * op.q_channels + slot * head_dim :]
    if members[count - 1] - members[0] == count - 1:
        return q[members[0] * op.q_channels :], op.q_channels
    target = scratch[3 * op.block_rows * op.row_bytes :]
    copy_rows(q.ctypes.data, op.q_channels, members.ctypes.data, count, head_dim, target.ctypes.data)  # pyright: ignore[reportCallIssue]
    return target, head_dim


@njit
def order_of(op, window, head, ints):
    """The tokens of a head's keys."""
    place = op.order + window % op.windows * op.order_window + head * op.order_head
    return ints[place : place + op.window_tokens]


@njit
def restore_order(op, window, head, top, rows, batch, taps, ints):
    """The taps of a block's pairs from the order of its keys to that of the tokens."""
    if op.ordered == 0:
        return
    order, first = order_of(op, window, head, ints), ((window * op.heads + head) * op.query_rows + top) * op.window_tokens
    for tap, item in ((op.tap_scores, op.item_scores), (op.tap_exponents, op.item_exponents), (op.tap_codes, op.item_codes)):
        pairs = taps[tap * batch + item * first :][: item * rows * op.window_tokens]
        if tap < 0:
            continue
        if item == 1:
            scatter(pairs, order)
        elif item == 2:
            scatter(pairs.view(np.int16), order)
        elif item == 4:
            scatter(pairs.view(np.int32), order)
        else:
            scatter(pairs.view(np.int64), order)


@njit
def scatter(pairs, order):
    """Element n of each row to the place order[n]."""
    tokens = len(order)
    ordered = np.empty(tokens, pairs.dtype)
    for start in range(0, len(pairs), tokens):
        row = pairs[start : start + tokens]
        for n in range(tokens):
            ordered[n] = row[n]
        for n in range(tokens):
            row[order[n]] = ordered[n]
