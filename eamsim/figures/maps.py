"""Figures 1 to 4 of the paper: attention over a photograph, entropy and divergence of attention weights as maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure, FigureBase
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from eamsim.errors import UserError
from eamsim.figures.style import COLUMN_INCHES, PAGE_INCHES, new_figure, style
from reference.attention.statistics_file import Source, Statistics

Place = tuple[int, int]
"""(layer, head), counted from 0."""

MAP_COLOURS = "viridis"  # its lightness rises evenly: legible without colour, and with any colour vision
HEADS_A_LINE = 6
MEAN_COLOUR, MAX_COLOUR = "#0072B2", "#D55E00"


def over_patches(layer: np.ndarray, heads: int, excluded: np.ndarray | None = None) -> np.ndarray:
    """What is said of every patch as a key, on the grid of patches: [heads, side, side] of a layer [maps, tokens, tokens].

    With a class token, of its query; without one, the mean over the queries of the patch's window that see it (`excluded`: pairs that
    take no part), the windows side by side and a shift by half a window taken back. Raises UserError unless there are a class token
    and a square of patches, or squares of windows.
    """
    tokens, windows = layer.shape[-1], len(layer) // heads
    if windows == 1 and tokens > 1 and _is_square(tokens - 1):
        return layer[:, 0, 1:].reshape(heads, math.isqrt(tokens - 1), -1)
    if not _is_square(tokens) or not _is_square(windows):
        raise UserError(
            f"attention maps: expected a class token and a square of patches, or square windows, got {tokens} tokens in {windows} windows"
        )
    live = np.ones(layer.shape, np.bool_) if excluded is None else ~excluded
    side, across = math.isqrt(tokens), math.isqrt(windows)
    mean = (layer * live).sum(axis=1) / live.sum(axis=1)
    grid = mean.reshape(across, across, heads, side, side).transpose(2, 0, 3, 1, 4).reshape(heads, across * side, across * side)
    return grid if excluded is None else np.roll(grid, (side // 2, side // 2), axis=(1, 2))


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


@style()
def attention_over_image(image: np.ndarray, rows: Mapping[str, np.ndarray], layer: int) -> Figure:
    """Figure 1: an image, and over it what the class token of one layer attends to, head by head.

    image: uint8 [height, width, 3]; rows: `over_patches` of the attention weights of each model measured, by its name.
    """
    heads, greatest = len(next(iter(rows.values()))), max(float(row.max()) for row in rows.values())
    lines, columns = math.ceil(heads / HEADS_A_LINE), 1 + min(heads, HEADS_A_LINE)
    width = COLUMN_INCHES if columns <= 4 else PAGE_INCHES
    figure = new_figure(width, len(rows) * lines * (0.85 * width / columns + 0.3 + 0.1 * len(rows)))
    axes = figure.subplots(len(rows) * lines, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    axes[0, 0].imshow(image)
    axes[0, 0].set_title("image")
    norm, extent = PowerNorm(0.5, 0, greatest), (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
    for number, (name, row) in enumerate(rows.items()):
        for head, axis in zip(range(heads), axes[number * lines : (number + 1) * lines, 1:].flat, strict=False):
            axis.imshow(image.mean(axis=2), cmap="gray", vmin=-255, vmax=255)  # pale: the colours over it stay those of the bar
            drawn = axis.imshow(row[head], MAP_COLOURS, norm, interpolation="nearest", alpha=0.7, extent=extent)
            axis.set_title("\n".join(([name] if len(rows) > 1 else []) + [f"layer {layer}", f"head {head}"]))
    figure.colorbar(drawn, ax=axes, label="attention weight", aspect=15 * len(axes)).set_ticks(MaxNLocator(4))
    return figure


@style()
def class_entropy(statistics: Statistics, source: Source, heads: int) -> Figure:
    """Figure 2: entropy of the class token's attention to every patch (Eq. 13), in the first heads of the model."""
    grids = _over_patches(statistics, _entropy(statistics, source))
    places = [(layer, head) for layer, grid in enumerate(grids) for head in range(len(grid))][:heads]
    rows = math.ceil(len(places) / HEADS_A_LINE)
    columns = math.ceil(len(places) / rows)
    figure = new_figure(PAGE_INCHES, 1.2 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    _draw_patches(figure, axes.ravel().tolist(), grids, places, "entropy (bits)")
    return figure


@style()
def full_entropy(statistics: Statistics, source: Source, places: Sequence[Place]) -> Figure:
    """Figure 3: entropy of every attention weight of some maps (Eq. 13), queries by keys; excluded pairs are blank.

    Token 0 is the class token of a ViT; a Swin has a map for each head of each window, counted window by window.
    """
    pairs = zip(_entropy(statistics, source), statistics.excluded, strict=True)
    layers = [layer if excluded is None else np.where(excluded, np.nan, layer) for layer, excluded in pairs]
    places = places or extremes(layers)
    values = [_head(layers, place) for place in places]
    figure = new_figure(COLUMN_INCHES, 1.75 if len(places) > 1 else 2.7)
    axes = figure.subplots(1, len(places), sharey=True, squeeze=False)[0]
    greatest = max(float(np.nanmax(each)) for each in values)
    for axis, place, each in zip(axes, places, values, strict=True):
        drawn = _map(axis, each, greatest)
        axis.set_title(_name(place, "map" if max(map(len, layers)) > max(statistics.header.heads) else "head"))
        axis.set_xlabel("key token")
        for each_axis in (axis.xaxis, axis.yaxis):
            each_axis.set_major_locator(MaxNLocator(4, integer=True))
    axes[0].set_ylabel("query token")
    figure.colorbar(drawn, ax=list(axes), label="entropy (bits)", shrink=0.8, aspect=15)
    return figure


@style()
def divergence(statistics: Statistics, places: Sequence[Place]) -> Figure:
    """Figure 4: divergence of the quantised model from the float one (Eq. 14), where the class token attends to the patches.

    Mean and maximum of every head, and maps of some. Raises UserError if the statistics are of one model only.
    """
    if statistics.divergence is None:
        raise UserError(
            f"statistics: hold no divergence, as only the {statistics.header.sources[0]} model was measured; "
            "measure with `eamsim entropy --of both`"
        )
    rows = _over_patches(statistics, statistics.divergence)
    places = places or extremes(rows)
    figure = new_figure(COLUMN_INCHES, 3.3)
    above, below = figure.subfigures(2, 1, squeeze=False).ravel()
    _draw_heads(above.subplots(), rows)
    axes = below.subplots(1, len(places), squeeze=False)[0]
    _draw_patches(below, list(axes), rows, places, "divergence (bits)")
    return figure


def extremes(layers: Sequence[np.ndarray]) -> list[Place]:
    """The two heads of least and of greatest mean in [heads, ...] layers."""
    means = {(layer, head): float(np.nanmean(values)) for layer, heads in enumerate(layers) for head, values in enumerate(heads)}
    return [min(means, key=means.__getitem__), max(means, key=means.__getitem__)]


def _draw_heads(axis: Axes, rows: Sequence[np.ndarray]) -> None:
    """Mean and maximum over the patches, a point a head, in the order of layers."""
    greatest, mean = (np.concatenate([summed(row, axis=(1, 2)) for row in rows]) for summed in (np.max, np.mean))
    firsts = np.cumsum([0, *(len(row) for row in rows)])[:-1]
    size = min(3.5, 120 / len(mean))
    axis.plot(greatest, "s--", color=MAX_COLOUR, markersize=size, label="maximum")
    axis.plot(mean, "o-", color=MEAN_COLOUR, markersize=size, label="mean")
    for first in firsts[1:]:
        axis.axvline(first - 0.5, color="0.85", linewidth=0.5, zorder=0)
    axis.set_xticks([first + (len(row) - 1) / 2 for first, row in zip(firsts, rows, strict=True)], [str(i) for i in range(len(rows))])
    axis.tick_params(axis="x", length=0)
    heads = f"heads 0 to {len(rows[0]) - 1}" if len({len(row) for row in rows}) == 1 else "the heads"
    axis.set(xlabel=f"layer (from left to right {heads} of each)", ylabel="divergence (bits)")
    axis.set_ylim(bottom=0)
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=2)


def _draw_patches(figure: FigureBase, axes: list[Axes], layers: Sequence[np.ndarray], places: Sequence[Place], label: str) -> None:
    """The grids of patches of some heads on one scale; axes that are left over stay empty."""
    maps = [_head(layers, place) for place in places]
    greatest = max(float(each.max()) for each in maps)
    for axis in axes:
        axis.set_axis_off()
    for axis, place, values in zip(axes, places, maps, strict=False):
        drawn = _map(axis, values, greatest)
        axis.set_title(_name(place))
    figure.colorbar(drawn, ax=axes, label=label, shrink=0.9, aspect=15 * math.ceil(len(axes) / HEADS_A_LINE))


def _over_patches(statistics: Statistics, layers: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [over_patches(*each) for each in zip(layers, statistics.header.heads, statistics.excluded, strict=True)]


def _map(axis: Axes, values: np.ndarray, greatest: float) -> AxesImage:
    return axis.imshow(values, MAP_COLOURS, vmin=0, vmax=greatest, interpolation="nearest")


def _name(place: Place, unit: str = "head") -> str:
    return f"layer {place[0]}, {unit} {place[1]}"


def _head(layers: Sequence[np.ndarray], place: Place) -> np.ndarray:
    """One head's values; UserError if the model has no such head."""
    layer, head = place
    if layer >= len(layers):
        raise UserError(f"--layer: expected 0 to {len(layers) - 1}, got {layer}")
    if head >= len(layers[layer]):
        raise UserError(f"--head: expected 0 to {len(layers[layer]) - 1}, the heads of layer {layer}, got {head}")
    return layers[layer][head]


def _entropy(statistics: Statistics, source: Source) -> list[np.ndarray]:
    if source not in statistics.entropy:
        raise UserError(
            f"--of: expected a model that was measured ({', '.join(statistics.header.sources)}), got {source}; "
            "measure it with `eamsim entropy`"
        )
    return statistics.entropy[source]
