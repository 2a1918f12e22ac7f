"""The statistics of attention weights in sealed HDF5 files (eamsim/files/hdf5.py): results to keep, and progress to take up again.

A file of results holds `manifest`, canonical JSON in unsigned bytes with the fields of `StatisticsHeader`, and for every layer and every
model measured ("float", "quantised") `layer3.float.entropy`, `.mean` and `.variance`, float32 [maps, tokens, tokens]; where the
header says so `.counts`, uint16 or uint32 [maps, tokens, tokens, 256]; for two models `layer3.divergence`, float32; and `layer3.excluded`,
unsigned bytes 0 or 1, in a layer of shifted windows: the pairs of tokens that take no part.
A file of progress holds the same `manifest` with `images` done, and `.counts`, `.sums`, `.squares` of some layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eamsim.arguments import expect_array, expect_type
from eamsim.errors import BadFile, UserError
from eamsim.files.container import Refused, canonical, parse_json
from eamsim.files.hdf5 import Stored, Tables
from eamsim.files.hdf5_write import Writer, writing
from eamsim.files.limits import STATISTICS_BYTES
from reference.attention.entropy import BINS, AttentionStatistics, counter

Source = Literal["float", "quantised"]
SOURCES: tuple[tuple[Source, ...], ...] = (("float",), ("quantised",), ("float", "quantised"))

FORMAT, VERSION, VERSIONS = "eam-statistics", 4, (3, 4)
MAX_LAYERS = 1 << 10
EXTENT_LIMITS = {"images": 1 << 32, "maps": 1 << 20, "rows": 1 << 16, "columns": 1 << 16}
FLOAT32_ERROR = 2**-22
LIMITS = {"mean": 1.0, "variance": 0.25, "divergence": math.inf, "excluded": 1.0}


@dataclass(frozen=True)
class StatisticsHeader:
    """What was measured, and how: origin holds hashes of model and data, settings.

    shapes: (maps, tokens, tokens) of each layer; heads: of each layer, whose maps come window by window; excluded: the layers in
    which pairs of tokens take no part.
    """

    shapes: tuple[tuple[int, int, int], ...]
    heads: tuple[int, ...]
    excluded: tuple[int, ...]
    images: int
    sources: tuple[Source, ...]
    histograms: bool
    origin: dict[str, Any]
    command: str

    @property
    def layers(self) -> int:
        return len(self.shapes)

    def arrays(self, layer: int) -> dict[str, tuple[Stored, tuple[int, ...]]]:
        """Name -> type and shape of every array that a file of results holds for a layer."""
        found: dict[str, tuple[Stored, tuple[int, ...]]] = {}
        shape = self.shapes[layer]
        for source in self.sources:
            found |= {f"layer{layer}.{source}.{quantity}": ("<f4", shape) for quantity in ("entropy", "mean", "variance")}
            if self.histograms:
                found[f"layer{layer}.{source}.counts"] = (self.counter, (*shape, BINS))
        if len(self.sources) == 2:
            found[f"layer{layer}.divergence"] = ("<f4", shape)
        if layer in self.excluded:
            found[f"layer{layer}.excluded"] = ("|u1", shape)
        return found

    @property
    def counter(self) -> Stored:
        return "<u2" if counter(self.images) is np.uint16 else "<u4"


@dataclass(frozen=True, eq=False)
class Statistics:
    """A file of results in memory, but for its histograms: per layer float32 [maps, tokens, tokens]; excluded: bool, or None."""

    header: StatisticsHeader
    entropy: dict[Source, list[np.ndarray]]
    mean: dict[Source, list[np.ndarray]]
    variance: dict[Source, list[np.ndarray]]
    divergence: list[np.ndarray] | None
    excluded: list[np.ndarray | None]


def write_statistics(path: Path, header: StatisticsHeader, layers: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Store the arrays of every layer, named as in `StatisticsHeader.arrays`, as they come; the file appears whole, at the end.

    Raises UserError for other arrays than the header says, BadFile where it cannot be written.
    """
    expect_type("header", header, StatisticsHeader)
    with _written(path) as file:
        _put_manifest(file, header)
        written = 0
        for written, arrays in enumerate(layers, 1):
            _expect_layer(header, written - 1, arrays)
            for name, array in arrays.items():
                file.put(name, array)
        if written < header.layers:
            raise UserError(f"layers: expected {header.layers}, got {written}; measure them all")


def _expect_layer(header: StatisticsHeader, layer: int, arrays: Mapping[str, np.ndarray]) -> None:
    expected = header.arrays(layer) if layer < header.layers else {}
    if arrays.keys() != expected.keys():
        raise UserError(f"layer {layer}: expected the arrays {', '.join(expected) or 'of no such layer'}, got {', '.join(arrays)}")
    for name, (stored, shape) in expected.items():
        expect_array(name, arrays[name], np.dtype(stored).name, shape)


def read_statistics(path: Path) -> Statistics:
    """The results of a file, every name, type, shape and range checked; raises BadFile."""
    with _checked(path) as (header, file):
        read = {name: _read(file, header, name) for name in _names(header) if not name.endswith(".counts")}

    def of(quantity: str) -> dict[Source, list[np.ndarray]]:
        return {source: [read[f"layer{layer}.{source}.{quantity}"] for layer in range(header.layers)] for source in header.sources}

    both = len(header.sources) == 2
    divergence = [read[f"layer{layer}.divergence"] for layer in range(header.layers)] if both else None
    excluded = [read[f"layer{layer}.excluded"].astype(np.bool_) if layer in header.excluded else None for layer in range(header.layers)]
    return Statistics(header, of("entropy"), of("mean"), of("variance"), divergence, excluded)


def write_progress(path: Path, header: StatisticsHeader, images: int, statistics: Mapping[Source, AttentionStatistics]) -> None:
    """Store the state of statistics that have all been given so many images. Raises BadFile where it cannot be written."""
    with _written(path) as file:
        _put_manifest(file, replace(header, images=images))
        for name, array in _state(statistics):
            file.put(name, array)


def read_progress(path: Path, header: StatisticsHeader, statistics: Mapping[Source, AttentionStatistics]) -> int:
    """Fill `statistics` from a file of the run that `header` describes, and return how many images they have been given.

    Raises UserError if the file is of another model, of other data or other settings, BadFile if it is damaged.
    """
    try:
        with Tables(path, "a progress file") as file:
            found = _take_manifest(file)
            _expect_same_run(path, header, found)
            file.expect({"manifest", *(name for name, _ in _state(statistics))})
            for name, array in _state(statistics):
                array[...] = file.take(name, array.dtype.str, array.shape)
    except Refused as error:
        raise BadFile(f"{path}: {error}; {error.advice or 'delete it and start again'}") from None
    for each in statistics.values():
        each.seen = dict.fromkeys(each.counts, found.images)
        for counts in each.counts.values():
            if not _counts_images(counts, found.images):
                raise BadFile(f"{path}: histograms do not count {found.images} images each; delete it and start again")
    return found.images


def _state(statistics: Mapping[Source, AttentionStatistics]) -> Iterator[tuple[str, np.ndarray]]:
    for source, each in statistics.items():
        for layer in each.counts:
            yield f"layer{layer}.{source}.counts", each.counts[layer]
            yield f"layer{layer}.{source}.sums", each.sums[layer]
            yield f"layer{layer}.{source}.squares", each.squares[layer]


def _expect_same_run(path: Path, header: StatisticsHeader, found: StatisticsHeader) -> None:
    """UserError names the first setting in which two runs differ; what is not listed here does not change a histogram."""
    ours, theirs = ({"shapes": each.shapes, "sources": each.sources} | each.origin for each in (header, found))
    for name in sorted(ours.keys() | theirs.keys()):
        if canonical(ours.get(name)) != canonical(theirs.get(name)):  # a tuple has become a list
            expected, got = ours.get(name), theirs.get(name)
            raise UserError(f"{path}: progress of another run: expected {name} {expected}, got {got}; delete it, or choose another --out")
    if found.images > header.images:
        raise BadFile(f"{path}: expected at most {header.images} images, got {found.images}; delete it and start again")


def _names(header: StatisticsHeader) -> list[str]:
    return [name for layer in range(header.layers) for name in header.arrays(layer)]


@contextmanager
def _written(path: Path) -> Iterator[Writer]:
    try:
        with writing(path) as file:
            yield file
    except OSError as error:
        raise BadFile(f"{path}: cannot be written ({error.strerror or error}); choose another path or free some space") from error


@contextmanager
def _checked(path: Path) -> Iterator[tuple[StatisticsHeader, Tables]]:
    """The header, and the open file once its arrays are known to be those that the header states."""
    try:
        with Tables(path, "a file of statistics") as file:
            header = _take_manifest(file)
            file.expect({"manifest", *_names(header)})
            yield header, file
    except Refused as error:
        raise BadFile(f"{path}: {error}; {error.advice or 'copy the file again or measure again with `eamsim entropy`'}") from None


def _put_manifest(file: Writer, header: StatisticsHeader) -> None:
    file.put("manifest", np.frombuffer(canonical({"format": FORMAT, "version": VERSION, **asdict(header)}), np.uint8))


def _take_manifest(file: Tables) -> StatisticsHeader:
    tree: dict[str, Any] = parse_json(file.take_bytes("manifest", STATISTICS_BYTES), "/manifest")
    kind = (tree.pop("format", None), tree.pop("version", None))
    if kind[0] != FORMAT or kind[1] not in VERSIONS:
        known = FORMAT, " or ".join(map(str, VERSIONS))
        raise Refused("/manifest format and version", known, kind, "use the eamsim that wrote it, or measure again")
    if kind[1] == VERSION:
        file.expect_index()
    if sorted(tree) != sorted(field.name for field in fields(StatisticsHeader)):
        raise Refused("/manifest", f"the fields {[field.name for field in fields(StatisticsHeader)]}", sorted(tree))
    shapes = tree["shapes"] if isinstance(tree["shapes"], list) else []
    extents = [[tree["images"], *shape] if isinstance(shape, list) else [] for shape in shapes]
    if not 1 <= len(shapes) <= MAX_LAYERS or not all(map(_within_limits, extents)):
        raise Refused("/manifest shapes, images", f"1 to {MAX_LAYERS} shapes of numbers from 1 to at most {EXTENT_LIMITS}", shapes)
    if tree["sources"] not in [list(sources) for sources in SOURCES]:
        raise Refused("/manifest sources", f"one of {SOURCES}", tree["sources"])
    heads, excluded = tree["heads"], tree["excluded"]
    split = isinstance(heads, list) and len(heads) == len(shapes) and all(map(_divides, heads, (shape[0] for shape in shapes)))
    known = isinstance(excluded, list) and all(type(layer) is int and 0 <= layer < len(shapes) for layer in excluded)
    if not split or not known:
        raise Refused("/manifest heads, excluded", "a divisor of every layer's maps, and numbers of layers", (heads, excluded))
    kinds = {"histograms": bool, "origin": dict, "command": str}
    if any(type(tree[name]) is not kind for name, kind in kinds.items()):
        raise Refused("/manifest histograms, origin, command", "true or false, an object and text", [tree[name] for name in kinds])
    tree |= {"shapes": tuple(map(tuple, shapes)), "sources": tuple(tree["sources"])}
    tree |= {"heads": tuple(heads), "excluded": tuple(excluded)}
    return StatisticsHeader(**tree)


def _divides(heads: Any, maps: int) -> bool:
    return type(heads) is int and heads >= 1 and maps % heads == 0


def _within_limits(extents: list[Any]) -> bool:
    limits = EXTENT_LIMITS.values()
    known = len(extents) == len(limits)
    return known and all(type(extent) is int and 1 <= extent <= limit for extent, limit in zip(extents, limits, strict=True))


def _read(file: Tables, header: StatisticsHeader, name: str) -> np.ndarray:
    """One array of a layer; Refused unless its type, shape and values are what the header allows."""
    layer, _, quantity = name.removeprefix("layer").partition(".")
    stored, shape = header.arrays(int(layer))[name]
    array = file.take(name, stored, shape)
    low, high, limit = float(array.min()), float(array.max()), _limit(quantity.rpartition(".")[2], header.images)
    if not (np.isfinite(array).all() and low >= 0 and high <= limit):
        raise Refused(f"/{name}", f"finite values in [0, {limit}]", (low, high))
    if quantity == "excluded" and (array.all(axis=1).any() or array.all(axis=2).any()):
        raise Refused(f"/{name}", "a pair that takes part in every row and column", "none")
    return array


def _limit(quantity: str, images: int) -> float:
    """The greatest value; so many images fill no more bins than that."""
    return math.log2(min(BINS, images)) * (1 + FLOAT32_ERROR) if quantity == "entropy" else LIMITS[quantity]


def _counts_images(counts: np.ndarray, images: int) -> bool:
    return bool((counts.sum(axis=-1, dtype=np.int64) == images).all())
