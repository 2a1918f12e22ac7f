"""The whole chain: float model -> RepQ-ViT -> entropy -> frozen maps -> integer program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from eamsim.constraints import Verified
from eamsim.inputs.images import ImageSet, open_images
from eamsim.inputs.labels import Labelling
from eamsim.jobs.search.budget import REMOVED, Budget, make_rungs
from eamsim.jobs.search.budget_search import States, build_within, heads_outputs, logit_scale, of_computed_rows
from eamsim.jobs.search.head_order import head_scores
from eamsim.program import Softmax
from eamsim.progress import Progress
from reference.attention.collect import attention_statistics, frozen_maps, maps_of, means, parameters_sha256, quantise_on, scores
from reference.attention.freeze import Freezing, FrozenMap, freeze
from reference.lowering.layers import LoweringConfig
from reference.lowering.program import lower, provenance
from reference.models.load import Model, load_model
from reference.models.maps import Maps
from reference.quantisation.precision import W4A4, Precision
from reference.quantisation.repq import Calibrated
from reference.tuning.tune import Start, Tuning, tune_on


def build_program(
    spec: str,
    calib: Sequence[Path],
    progress: Progress,
    freezing: Freezing | Budget,
    *,
    softmax: Softmax = "paper",
    weights: str | None = None,
    random_init: int | None = None,
    allow_pickle: bool = False,
    image_size: tuple[int, int] | None = None,
    limit: int | None = None,
    range_images: int = 32,
    entropy_from: Literal["quantised", "float"] = "quantised",
    share_windows: bool = False,
    compensated: bool = True,
    precision: Precision = W4A4,
    labels: str | None = None,
    tuning: Tuning | None = None,
    keep_unread: bool = False,
) -> tuple[Verified, dict[str, Any]]:
    """The integer program of a float model, its attention weights frozen as chosen or as a budget allows, and its provenance.

    spec, weights, random_init, allow_pickle, image_size: as `reference.models.load.load_model`; calib: as
    `eamsim.inputs.images.open_images`, of which at most `limit` images give the entropies and `range_images` the quantisers' ranges;
    share_windows: of a Swin, one map for all windows of a block instead of one for each; compensated: with weights and biases re-fitted
    by `reference.quantisation.compensate`; precision: bits and kinds of codes; labels: as `Labelling.choice`, for a budget; tuning:
    by `reference.tuning`, not with a budget; keep_unread: as `LoweringConfig`. Raises UserError and BadFile.
    """
    config = LoweringConfig(keep_unread=keep_unread)
    model = load_model(spec, weights, random_init, allow_pickle, image_size)
    if isinstance(freezing, Budget):
        freezing.check(sum(block.heads for block in model.network.blocks))
    maps = maps_of(model.network, share_windows)  # or refuse them before the work
    judging = labelling(model, labels, required=False) if isinstance(freezing, Budget) else None  # else labels decide nothing
    images = open_images(calib, model.preprocessing, limit, judging)
    range_images = min(range_images, len(images))
    quantised = partial(quantise_on, model, images, range_images, progress, compensated, precision)
    sources = {
        "entropy_from": entropy_from,
        "share_windows": share_windows,
        **precision.json(),
        "random_init": random_init,
        "model_sha256": parameters_sha256(model.module),
        "calibration_images": len(images),
        "calibration_sha256": images.sha256,
    }
    if isinstance(freezing, Budget):
        calibrated = quantised()
        source = model if entropy_from == "float" else calibrated
        judged = open_images(freezing.validation, model.preprocessing, None, labelling(model, labels)) if freezing.validation else images
        program, choice = _within(freezing, calibrated, source, images, judged, progress, maps, config)
    else:

        def start() -> Start:
            calibrated = quantised()
            source = model if entropy_from == "float" else calibrated
            return Start(calibrated, _frozen(freezing, source, calibrated, images, progress, maps))

        choice = asdict(freezing) | {"softmax": softmax}
        identity = choice | sources | {"range_images": range_images, "compensated": compensated}
        found = tune_on(tuning, model, images, softmax, start, identity, progress) if tuning else start()
        choice["tuning"] = tuning and tuning.settings
        calibrated, program = found.calibrated, lower(found.calibrated, found.frozen, softmax, config)
    origin = choice | sources | {"data": images.summary.json()}
    return program, provenance(calibrated, config) | origin


def _frozen(
    freezing: Freezing,
    source: Model | Calibrated,
    calibrated: Calibrated,
    images: ImageSet,
    progress: Progress,
    maps: Sequence[Maps],
) -> list[FrozenMap] | None:
    """The chosen attention weights of `source`, whose maps are measured, unless nothing is to be frozen."""
    if not freezing.tau:
        return None
    statistics = attention_statistics(source, images, progress, [freezing.order], maps)
    if freezing.order == "kl":
        return freeze(head_scores(calibrated, statistics, images, progress), means(statistics), freezing)
    return frozen_maps(statistics, freezing)


def _within(
    budget: Budget,
    calibrated: Calibrated,
    source: Model | Calibrated,
    images: ImageSet,
    judged: ImageSet,
    progress: Progress,
    maps: Sequence[Maps],
    config: LoweringConfig,
) -> tuple[Verified, dict[str, Any]]:
    """The program that the search finds, and how it was found; the order is `output`."""
    statistics = attention_statistics(source, images, progress, ["output"], maps)
    dense = lower(calibrated, softmax="renormalised", config=config)
    units = [Freezing(0, granularity, "model", "output") for granularity in budget.frozen or ["head"]]
    computed = {each.granularity: of_computed_rows(dense, scores(statistics, each)) for each in units}
    rungs = make_rungs(computed, [op.heads for op in dense.attentions], bool(budget.frozen), REMOVED in budget.granularities)
    outputs = heads_outputs(dense, images, progress) if REMOVED in budget.granularities else {}
    states = States(dense, calibrated.attention, means(statistics), outputs, logit_scale(calibrated, dense), rungs, budget.macs)
    program, found = build_within(states, budget, images, judged, progress)
    judges = {"images": len(judged), "sha256": judged.sha256, "labelled": judged.labels is not None, "data": judged.summary.json()}
    settings = {name: getattr(budget, name) for name in ("keep_accuracy", "save_macs", "granularities", "evaluations", "order")}
    return program, {"softmax": "renormalised", "order": "output", "budget": settings | {"judged": judges} | found}


def labelling(model: Model, choice: str | None = None, required: bool = True) -> Labelling:
    """How data's classes are found among the model's."""
    return Labelling(model.module.num_classes, model.label_names, model.label_descriptions, choice, required)
