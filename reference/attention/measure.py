"""Statistics of attention weights over many images, in bounded memory, in a run that may be interrupted and taken up again."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import numpy as np
import torch

from eamsim.errors import BadFile, UserError
from eamsim.inputs.images import ImageSet, open_images
from eamsim.progress import Progress
from reference.attention.collect import calibrate_on, parameters_sha256
from reference.attention.divergence import divergence
from reference.attention.entropy import AttentionStatistics, layer_bytes, layer_groups
from reference.attention.statistics_file import Source, StatisticsHeader, read_progress, write_progress, write_statistics
from reference.models.load import Model, load_model
from reference.models.maps import Maps
from reference.quantisation.fakequant import collect_maps
from reference.quantisation.repq import Calibrated

BATCH = 32
GIB = 1 << 30
SAVE_SECONDS = 120
"""Time between two savings of progress: what an interruption costs at most."""


def measure_model(
    spec: str,
    calib: Sequence[Path],
    out: Path,
    progress: Progress,
    *,
    of: Literal["float", "quantised", "both"],
    command: str,
    memory_bytes: int,
    histograms: bool = False,
    weights: str | None = None,
    random_init: int | None = None,
    allow_pickle: bool = False,
    limit: int | None = None,
    range_images: int = 32,
) -> float:
    """Measure a float model, its quantised form, or both, and return the speed, as `measure` does.

    spec, weights, random_init, allow_pickle: as `reference.models.load.load_model`; calib: as `inputs.images.open_images`, of which at
    most `limit` images are measured and `range_images` set the quantisers' ranges. Raises UserError and BadFile.
    """
    model = load_model(spec, weights, random_init, allow_pickle)
    images = open_images(calib, model.preprocessing, limit)
    sources: tuple[Source, ...] = ("float", "quantised") if of == "both" else (of,)
    origin: dict[str, Any] = {
        "model": model.name,
        "model_sha256": parameters_sha256(model.module),
        "calibration_sha256": images.sha256,
        "data": images.summary.json(),
        "preprocessing": dataclasses.asdict(model.preprocessing),
        "batch": BATCH,
        "torch": torch.__version__,
    }
    if random_init is not None:
        origin["random_init"] = random_init
    models: dict[Source, Model | Calibrated] = {"float": model}
    if "quantised" in sources:
        range_images = min(range_images, len(images))
        origin["range_images"] = range_images
        models["quantised"] = calibrate_on(model, images, range_images, progress)
    measured: dict[Source, Model | Calibrated] = {source: models[source] for source in sources}
    return measure(out, measured, images, progress, memory_bytes, origin, command, histograms)


def measure(
    path: Path,
    models: Mapping[Source, Model | Calibrated],
    images: ImageSet,
    progress: Progress,
    memory_bytes: int,
    origin: dict[str, Any],
    command: str,
    histograms: bool = False,
) -> float:
    """Write entropy, mean and variance of every attention weight of every model, and for two their divergence, to `path`.

    As many layers at a time as fit into `memory_bytes`, each time over all images. origin: hashes and settings, stored in the file;
    a run with equal ones continues from `PATH.progress`, which holds the histograms of all layers begun. Returns images per
    second, decoding included, an image counted once a forward pass; 0 if nothing was left to do. Raises UserError and BadFile.
    """
    network = next(iter(models.values())).network
    maps, heads = network.maps, tuple(block.heads for block in network.blocks)
    excluded = tuple(layer for layer, each in enumerate(maps) if each.excluded is not None)
    header = StatisticsHeader(tuple(each.shape for each in maps), heads, excluded, len(images), tuple(models), histograms, origin, command)
    groups = groups_within(header, memory_bytes)
    run = _Run(path.with_name(path.name + ".progress"), models, images, header, groups)

    write_statistics(path, header, (arrays for group in groups for arrays in run.results(group, progress, last=group is groups[-1])))
    shutil.rmtree(run.folder, ignore_errors=True)
    return run.passes / run.seconds if run.passes else 0.0


def groups_within(header: StatisticsHeader, memory_bytes: int) -> list[range]:
    """The layers in groups whose statistics, of all models, take at most so much memory; UserError if one layer takes more."""
    needed = [layer_bytes(shape, header.images) * len(header.sources) for shape in header.shapes]
    if max(needed) > memory_bytes:
        gib = (max(needed) / GIB, memory_bytes / GIB)
        raise UserError(f"--memory: expected at least {gib[0]:.3f} GiB, what one layer needs, got {gib[1]:.3f}; raise it")
    return layer_groups(needed, memory_bytes)


class _Run:
    """A measurement in progress; passes, seconds: images that went through a model so far, and the time it took."""

    def __init__(
        self, folder: Path, models: Mapping[Source, Model | Calibrated], images: ImageSet, header: StatisticsHeader, groups: list[range]
    ):
        self.folder, self.models, self.images = folder, models, images
        self.passes, self.seconds = 0, 0.0
        self.header = dataclasses.replace(header, origin=header.origin | {"groups": [len(group) for group in groups]})

    def results(self, group: range, progress: Progress, last: bool) -> Iterator[dict[str, np.ndarray]]:
        """What a file of results holds, layer by layer; the memory is free once the last layer has been taken."""
        statistics = self._statistics(group, progress, keep=not last)
        for layer in group:
            pairs = next(iter(self.models.values())).network.maps[layer].excluded
            excluded = {} if pairs is None else {f"layer{layer}.excluded": pairs.astype(np.uint8)}
            yield _results(statistics, layer, self.header.histograms) | excluded

    def _statistics(self, group: range, progress: Progress, keep: bool) -> dict[Source, AttentionStatistics]:
        """The statistics of some layers over all images, as far as possible from the last saving; keep: save them at the end too."""
        statistics: dict[Source, AttentionStatistics] = {}
        for source in self.models:
            statistics[source] = AttentionStatistics({layer: Maps(self.header.shapes[layer]) for layer in group}, len(self.images))
        file = self.folder / f"from_layer{group[0]}.h5"
        done = read_progress(file, self.header, statistics) if file.exists() else 0
        if done == len(self.images):
            return statistics
        started = saved = monotonic()
        with progress(f"attention maps, layers {group[0]}-{group[-1]}", (len(self.images) - done) * len(self.models)) as advance:
            for batch in self.images.select(np.arange(done, len(self.images))).batches(BATCH):
                for source, model in self.models.items():
                    collect_maps(model, [batch], statistics[source].add)
                    advance(len(batch))
                done += len(batch)
                self.passes += len(batch) * len(self.models)
                if monotonic() - saved >= SAVE_SECONDS and done < len(self.images):
                    self._save(file, done, statistics)
                    saved = monotonic()
        self.seconds += monotonic() - started
        if keep:
            self._save(file, done, statistics)
        return statistics

    def _save(self, file: Path, done: int, statistics: dict[Source, AttentionStatistics]) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise BadFile(f"{self.folder}: cannot be made ({error.strerror}); choose another --out") from error
        write_progress(file, self.header, done, statistics)


def _results(statistics: dict[Source, AttentionStatistics], layer: int, histograms: bool) -> dict[str, np.ndarray]:
    """What a file of results holds for a layer, under its names there."""
    found: dict[str, np.ndarray] = {}
    for source, each in statistics.items():
        quantities = {"entropy": each.entropy(layer), "mean": each.mean(layer), "variance": each.variance(layer)}
        quantities |= {"counts": each.counts[layer]} if histograms else {}
        found |= {f"layer{layer}.{source}.{quantity}": array for quantity, array in quantities.items()}
    if len(statistics) == 2:
        found[f"layer{layer}.divergence"] = divergence(statistics["float"], statistics["quantised"], layer)
    return found
