"""Every public function of the library against every kind of wrong argument: one class of error, one line, which names the argument."""
# pyright: reportArgumentType=false, reportCallIssue=false

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
from local_models import VIT

import cost_model
import eamsim
import reference
from eamsim import artifact, engine, golden
from eamsim.errors import UserError
from eamsim.exports import c99 as c_export
from eamsim.inputs.images import Preprocessing, in_memory, open_images
from eamsim.jobs.evaluate import evaluate, evaluate_program
from eamsim.jobs.measure import accuracy
from eamsim.narrow import narrowed, widths_of
from eamsim.tensors import taps
from eamsim.traces.file import DIGEST_BYTES, LANES, recording
from reference.attention.divergence import divergence
from reference.attention.entropy import AttentionStatistics
from reference.attention.freeze import Freezing, FrozenMap, freeze
from reference.attention.statistics_file import StatisticsHeader, write_statistics
from reference.lowering.layers import LoweringConfig
from reference.lowering.program import lower, provenance
from reference.models.load import as_model
from reference.models.maps import Maps
from reference.quantisation.compensate import compensate
from reference.quantisation.fakequant import collect_maps, predict, quantise_frozen
from reference.quantisation.precision import Precision
from reference.quantisation.repq import calibrate

SHAPE, HEADS, TOKENS = (16, 16, 3), 2, 17
MAPS = (HEADS, TOKENS, TOKENS)
Call = Callable[[SimpleNamespace, Any], object]
nan = np.float64("nan")
CHIP = cost_model.load("small-npu")
SMALL = Preprocessing(8, 8, 1.0, "bicubic")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Arguments that are right."""
    images = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), np.uint8)
    model = as_model(timm.create_model("vit_tiny_patch16_224", **VIT).eval(), "small")
    calibrated = calibrate(model, images)
    frozen = [FrozenMap(np.ones(MAPS, bool), np.full(MAPS, 1 / TOKENS))] * 2
    program = lower(calibrated, frozen)
    statistics = AttentionStatistics({0: Maps(MAPS)}, 2)
    statistics.add(0, np.full((2, *MAPS), 1 / TOKENS))
    scores, mean = [np.zeros(MAPS)] * 2, [np.full(MAPS, 0.5)] * 2
    folder, loaded = tmp_path_factory.mktemp("files"), engine.Engine(program, 1)
    header = StatisticsHeader((MAPS,), (HEADS,), (), 2, ("float",), False, {}, "")
    arrays = {f"layer0.float.{each}": np.zeros(MAPS, np.float32) for each in ("entropy", "mean", "variance")}
    return SimpleNamespace(**locals())


def read_c(good: SimpleNamespace, image: Any) -> object:
    return c_export.runtime(good.program, good.folder / "c")(image)


def put(good: SimpleNamespace, change: Callable[[Any], object], names: Any = None) -> None:
    """Into a trace of two images."""
    names = list(taps(good.program)) if names is None else names
    with recording(good.folder / "t.h5", good.program, names, ["a", "b"], "golden", False, {}) as recorder:
        change(recorder)


def written(good: SimpleNamespace, *layers: dict[str, Any]) -> None:
    write_statistics(good.folder / "s.h5", good.header, layers)


IMAGES: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "normalised": (lambda images: np.float32(images / 255), "float32 [2, 16, 16, 3]"),
    "signed": (lambda images: images.astype(np.int64), "int64 [2, 16, 16, 3]"),
    "one image": (lambda images: images[0], "uint8 [16, 16, 3]"),
    "five axes": (lambda images: images[None], "uint8 [1, 2, 16, 16, 3]"),
    "other height": (lambda images: images[:, 1:], "uint8 [2, 15, 16, 3]"),
    "channels first": (lambda images: images.transpose(0, 3, 1, 2), "uint8 [2, 3, 16, 16]"),
    "grey": (lambda images: images[..., :1], "uint8 [2, 16, 16, 1]"),
    "list": (lambda images: images.tolist(), "list"),
    "path": (lambda _: Path("images"), "PosixPath"),
    "nothing": (lambda _: None, "None"),
    "empty": (lambda images: images[:0], ""),
}
TAKE_IMAGES: dict[str, Call] = {
    "calibrate": lambda good, images: calibrate(good.model, images),
    "predict, float": lambda good, images: predict(good.model, images),
    "predict, quantised": lambda good, images: predict(good.calibrated, images, good.frozen),
    "collect_maps": lambda good, images: collect_maps(good.model, [images], lambda block, maps: None),
    "evaluate": lambda good, images: evaluate(good.model, [images], np.array([0, 1])),
    "compensate": lambda good, images: compensate(good.calibrated, [images], lambda steps: None),
    "engine.stream": lambda good, images: list(good.loaded.stream(images)),
    "engine.digests": lambda good, images: good.loaded.digests(images, ["head"]),
    "engine.profile": lambda good, images: good.loaded.profile(images),
}
TAKE_NONE_TOO: dict[str, Call] = {
    "engine.run": lambda good, images: good.loaded.run(images),
    "evaluate_program": lambda good, images: evaluate_program(good.program, [images], np.array([0, 1]), 1),
    "trace": lambda good, images: put(good, lambda recorder: recorder.put_images(0, images)),
}


def refused(call: Callable[[], object], text: str) -> None:
    with pytest.raises(UserError, match=re.escape(text)) as caught:
        call()
    assert type(caught.value) is UserError
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", IMAGES)
@pytest.mark.parametrize("entry", [*TAKE_IMAGES, *TAKE_NONE_TOO])
def test_what_are_no_images_of_the_model(good, entry, fault):
    change, got = IMAGES[fault]
    if fault == "empty" and entry in TAKE_NONE_TOO:
        return
    text = f"images: expected uint8 [batch, 16, 16, 3], got {got}; give pixels" if got else "images: expected at least 1, got 0"
    refused(lambda: (TAKE_IMAGES | TAKE_NONE_TOO)[entry](good, change(good.images)), text)


IMAGE_FAULTS = {
    "normalised": (lambda image: image / 255, "float64 [16, 16, 3]"),
    "batch": (lambda image: image[None], "uint8 [1, 16, 16, 3]"),
    "other width": (lambda image: image[:, :15], "uint8 [16, 15, 3]"),
    "as many bytes": (lambda image: image.reshape(16, 48), "uint8 [16, 48]"),
    "list": (lambda image: image.tolist(), "list"),
}


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
@pytest.mark.parametrize("entry", ["golden.run", "c_export.runtime"])
def test_what_is_no_image_of_the_program(good, entry, fault):
    change, got = IMAGE_FAULTS[fault]
    call = {"golden.run": lambda image: golden.run(good.program, image), "c_export.runtime": lambda image: read_c(good, image)}[entry]
    refused(lambda: call(change(good.images[0])), f"image: expected uint8 [16, 16, 3], got {got}; give pixels")


MASK, MEAN = np.ones(MAPS, bool), np.full(MAPS, 0.5)
MAP_FAULTS: dict[str, tuple[Any, Any, str]] = {
    "float mask": (MEAN, MEAN, "frozen mask: expected bool [maps, tokens, tokens], got float64 [2, 17, 17]"),
    "mask of codes": (MASK.astype(np.uint8), MEAN, "frozen mask: expected bool [maps, tokens, tokens], got uint8 [2, 17, 17]"),
    "mask of one head": (MASK[0], MEAN[0], "frozen mask: expected bool [maps, tokens, tokens], got bool [17, 17]"),
    "oblong": (MASK[:, 1:], MEAN[:, 1:], "frozen mask: expected bool [maps, tokens, tokens], got bool [2, 16, 17]"),
    "no mask": (None, MEAN, "frozen mask: expected bool [maps, tokens, tokens], got None"),
    "mean of seven": (MASK, MEAN * 14, "frozen mean: expected 0..1, got 7.0..7.0"),
    "negative mean": (MASK, MEAN - 1, "frozen mean: expected 0..1, got -0.5..-0.5"),
    "one NaN": (MASK, np.where(np.arange(17) == 3, nan, MEAN), "frozen mean: expected 0..1, got nan..nan"),
    "float32": (MASK, MEAN.astype(np.float32), "frozen mean: expected float64 [2, 17, 17], got float32 [2, 17, 17]"),
    "mean of one head": (MASK, MEAN[:1], "frozen mean: expected float64 [2, 17, 17], got float64 [1, 17, 17]"),
    "list": (MASK, MEAN.tolist(), "frozen mean: expected float64 [2, 17, 17], got list"),
}


@pytest.mark.parametrize("fault", MAP_FAULTS)
def test_what_is_no_frozen_map(fault):
    mask, mean, text = MAP_FAULTS[fault]
    refused(lambda: FrozenMap(mask, mean), text)


def small(layer: FrozenMap) -> FrozenMap:
    return FrozenMap(layer.mask[:, :9, :9], layer.mean[:, :9, :9])


FROZEN_FAULTS: dict[str, tuple[Callable[[list[FrozenMap]], Any], str]] = {
    "one too few": (lambda frozen: frozen[:1], "frozen: expected 2, one for each block, got 1"),
    "one too many": (lambda frozen: frozen * 2, "frozen: expected 2, one for each block, got 4"),
    "of fewer tokens": (lambda frozen: [frozen[0], small(frozen[1])], "block1 frozen map: expected [2, 17, 17], got [2, 9, 9]"),
    "of one head": (lambda frozen: [FrozenMap(MASK[:1], MEAN[:1]), frozen[1]], "block0 frozen map: expected [2, 17, 17], got [1, 17, 17]"),
    "masks alone": (lambda frozen: [layer.mask for layer in frozen], "block0 frozen map: expected FrozenMap, got bool [2, 17, 17]"),
    "a number": (lambda frozen: 0.2, "frozen: expected Sized, got 0.2"),
}
TAKE_FROZEN: dict[str, Call] = {
    "predict": lambda good, frozen: predict(good.model, good.images, frozen),
    "evaluate": lambda good, frozen: evaluate(good.calibrated, [good.images], np.array([0, 1]), frozen),
    "lower": lambda good, frozen: lower(good.calibrated, frozen),
}


@pytest.mark.parametrize("fault", FROZEN_FAULTS)
@pytest.mark.parametrize("entry", TAKE_FROZEN)
def test_what_are_no_frozen_maps_of_the_model(good, entry, fault):
    change, text = FROZEN_FAULTS[fault]
    refused(lambda: TAKE_FROZEN[entry](good, change(good.frozen)), text)


TAKE_MODEL: dict[str, tuple[Call, str]] = {
    "as_model": (lambda good, model: as_model(model, "small"), "model: expected Module"),
    "calibrate": (lambda good, model: calibrate(model, good.images), "model: expected Model"),
    "predict": (lambda good, model: predict(model, good.images), "model: expected Model or Calibrated"),
    "collect_maps": (lambda good, model: collect_maps(model, [good.images], print), "model: expected Model or Calibrated"),
    "evaluate": (lambda good, model: evaluate(model, [good.images], np.array([0, 1])), "model: expected Model or Calibrated"),
    "lower": (lambda good, model: lower(model), "calibrated: expected Calibrated"),
    "provenance": (lambda good, model: provenance(model), "calibrated: expected Calibrated"),
    "compensate": (lambda good, model: compensate(model, [good.images], print), "calibrated: expected Calibrated"),
    "quantise_frozen": (lambda good, model: quantise_frozen(model, good.frozen), "calibrated: expected Calibrated"),
}


@pytest.mark.parametrize(("model", "got"), [("deit_tiny", "'deit_tiny'"), (None, "None"), ([1], "list"), (np.eye(2), "float64 [2, 2]")])
@pytest.mark.parametrize("entry", TAKE_MODEL)
def test_what_is_no_model(good, entry, model, got):
    call, text = TAKE_MODEL[entry]
    refused(lambda: call(good, model), f"{text}, got {got}")


def test_a_calibrated_model_is_not_calibrated_again_and_a_float_one_not_lowered(good):
    refused(lambda: calibrate(good.calibrated, good.images), "model: expected Model, got Calibrated")
    refused(lambda: lower(good.model), "calibrated: expected Calibrated, got Model")


def lanes(good: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    count = len(taps(good.program))
    return np.zeros((2, count, LANES * DIGEST_BYTES), np.uint8), np.zeros((count, 2), np.int64)


OTHERS: dict[str, tuple[Callable[[SimpleNamespace], object], str]] = {
    "mode": (lambda g: calibrate(g.model, g.images, "fast"), "mode: expected one of hardware, published, got 'fast'"),
    "weight bits": (lambda g: Precision(weight_bits=0), "weight_bits: expected an integer in 2..16, got 0"),
    "activation bits": (
        lambda g: Precision(activation_bits=4.0),
        "activation_bits: expected an integer in 2..16, got 4.0",
    ),
    "softmax of predict": (
        lambda g: predict(g.model, g.images, softmax="full"),
        "softmax: expected one of paper, renormalised, got 'full'",
    ),
    "softmax of lower": (lambda g: lower(g.calibrated, softmax=None), "softmax: expected one of paper, renormalised, got None"),
    "config": (lambda g: lower(g.calibrated, config={}), "config: expected LoweringConfig, got dict"),
    "no batches": (lambda g: compensate(g.calibrated, [], print), "batches: expected at least one image, got none"),
    "freezing": (lambda g: freeze(g.scores, g.mean, 0.2), "freezing: expected Freezing, got 0.2"),
    "no layers": (lambda g: freeze([], [], Freezing(0.2)), "scores: expected those of at least one block, got none"),
    "fewer means": (lambda g: freeze(g.scores, g.mean[:1], Freezing(0.2)), "mean: expected 2, one for each block, got 1"),
    "flat scores": (
        lambda g: freeze([MEAN[0]], [MEAN[0]], Freezing(0.2)),
        "block0 scores: expected float [maps, tokens, tokens], got float64 [17",
    ),
    "mask as scores": (
        lambda g: freeze([MASK], [MEAN], Freezing(0.2)),
        "block0 scores: expected float [maps, tokens, tokens], got bool [2",
    ),
    "other means": (
        lambda g: freeze([MEAN], [MEAN[:, :9, :9]], Freezing(0.2)),
        "block0 mean: expected float [2, 17, 17], got float64 [2, 9, 9]",
    ),
    "wide means": (lambda g: freeze([MEAN], [MEAN * 3], Freezing(0.2)), "block0 mean: expected 0..1, got 1.5..1.5"),
    "NaN score": (
        lambda g: freeze([MEAN * nan], [MEAN], Freezing(0.2)),
        "block0: expected a number as the score of every attention weight",
    ),
    "tau": (lambda g: Freezing(20), "tau: must be a fraction in [0, 1], got 20"),
    "maps of statistics": (lambda g: AttentionStatistics({0: MAPS}, 2), "maps: expected Maps, got tuple"),
    "images of statistics": (lambda g: AttentionStatistics({0: Maps(MAPS)}, 0), "images: expected an integer of at least 1, got 0"),
    "float32 maps": (
        lambda g: g.statistics.add(0, np.ones((1, *MAPS), np.float32)),
        "layer 0 attention maps: expected float64 [batch, 2, 17, 17], got float32 [1, 2, 17, 17]",
    ),
    "maps of one image": (
        lambda g: g.statistics.add(0, MEAN),
        "layer 0 attention maps: expected float64 [batch, 2, 17, 17], got float64 [2",
    ),
    "no maps": (lambda g: g.statistics.add(0, None), "layer 0 attention maps: expected float64 [batch, 2, 17, 17], got None"),
    "entropy of no layer": (lambda g: g.statistics.entropy(1), "layer: expected one of those held, 0, got 1"),
    "mean of no layer": (lambda g: g.statistics.mean(-1), "layer: expected one of those held, 0, got -1"),
    "variance of no layer": (lambda g: g.statistics.variance("0"), "layer: expected one of those held, 0, got '0'"),
    "divergence of maps": (
        lambda g: divergence(g.statistics, MEAN, 0),
        "statistics: expected AttentionStatistics, got float64 [2, 17, 17]",
    ),
    "statistics header": (lambda g: write_statistics(g.folder / "s.h5", {}, []), "header: expected StatisticsHeader, got dict"),
    "statistics too few": (lambda g: written(g), "layers: expected 1, got 0"),
    "statistics too many": (
        lambda g: written(g, g.arrays, g.arrays),
        "layer 1: expected the arrays of no such layer, got layer0.float.entropy",
    ),
    "statistics missing": (lambda g: written(g, {}), "layer 0: expected the arrays layer0.float.entropy, layer0.float.mean"),
    "statistics wide": (
        lambda g: written(g, g.arrays | {"layer0.float.mean": MEAN}),
        "layer0.float.mean: expected float32 [2, 17, 17], got float64 [2, 17, 17]",
    ),
    "labels too few": (lambda g: accuracy(np.zeros((2, 5)), np.array([0])), "labels: expected integer [2], got int64 [1]"),
    "labels beyond": (lambda g: accuracy(np.zeros((2, 5)), np.array([0, 5])), "labels: expected 0..4, got 0..5"),
    "labels as names": (lambda g: accuracy(np.zeros((1, 5)), np.array(["cat"])), "labels: expected integer [1], got <U3 [1]"),
    "no logits": (
        lambda g: accuracy(np.zeros((0, 5)), np.zeros(0, int)),
        "logits: expected numbers [images, classes] of at least one image, got",
    ),
    "NaN logits": (
        lambda g: accuracy(np.full((1, 5), nan), np.zeros(1, int)),
        "logits: expected numbers [images, classes] of at least one",
    ),
    "taps by name": (lambda g: g.loaded.run(g.images, taps="head"), "taps: expected bool or Callable, got 'head'"),
    "wanted by name": (lambda g: list(g.loaded.stream(g.images, "head")), "wanted: expected Callable, got 'head'"),
    "digest of no tap": (lambda g: g.loaded.digests(g.images, ["haed"]), "did you mean 'head'?"),
    "digest twice": (lambda g: g.loaded.digests(g.images, ["head", "head"]), "names: expected each once, got 'head' twice"),
    "rounds": (lambda g: g.loaded.profile(g.images, 0), "rounds: expected an integer of at least 1, got 0"),
    "threads": (lambda g: engine.Engine(g.program, 1.0), "engine threads: expected int, got 1.0"),
    "golden taps": (lambda g: golden.run(g.program, g.images[0], True), "taps: expected dict or NoneType, got True"),
    "C folder": (lambda g: c_export.export(g.program, None), "folder: expected str or PathLike, got None"),
    "path of a program": (lambda g: artifact.write(3, g.program, {}), "path: expected str or PathLike, got 3"),
    "provenance": (lambda g: artifact.write(g.folder / "p.eam", g.program, None), "provenance: expected dict, got None"),
    "NaN in it": (lambda g: artifact.write(g.folder / "p.eam", g.program, {"scale": nan}), "provenance: expected what JSON holds"),
    "array in it": (lambda g: artifact.write(g.folder / "p.eam", g.program, {"scale": MEAN}), "provenance: expected what JSON holds"),
    "unknown tap": (lambda g: put(g, print, ["head.ack"]), "taps: 'head.ack' is none of the"),
    "tap twice": (lambda g: put(g, print, ["head", "head"]), "taps: expected each once, got 'head' twice"),
    "put no tap": (lambda g: put(g, lambda r: r.put(0, {"haed": MEAN})), "did you mean 'head'?"),
    "put floats": (
        lambda g: put(g, lambda r: r.put(0, {"head": np.zeros((2, 1, 5))})),
        "head: expected integer [batch, 1, 5], got float64 [2, 1, 5]",
    ),
    "put no batch": (
        lambda g: put(g, lambda r: r.put(0, {"head": np.zeros((1, 5), int)})),
        "head: expected integer [batch, 1, 5], got int64 [1, 5]",
    ),
    "put too many": (lambda g: put(g, lambda r: r.put(1, {"head": np.zeros((2, 1, 5), int)})), "first: expected an integer in 0..0, got 1"),
    "put before": (lambda g: put(g, lambda r: r.put_images(-1, g.images[:1])), "first: expected an integer in 0..1, got -1"),
    "short lanes": (lambda g: put(g, lambda r: r.put_lanes(0, lanes(g)[0][..., 1:], lanes(g)[1])), "lanes: expected uint8 [batch, "),
    "codes": (lambda g: Precision("fit"), "codes: expected one of uniform, fitted, got 'fit'"),
    "text as tau": (lambda g: Freezing("x"), "tau: must be a fraction in [0, 1], got 'x'"),
    "granularity": (lambda g: Freezing(0.2, 3), "granularity: must be weight, row, column, head or tile:RxC such as tile:16x16, got 3"),
    "seed": (lambda g: Freezing(0.2, seed=1.5), "seed: expected an integer of at least 0, got 1.5"),
    "model by number": (lambda g: reference.quantise(3, g.images), "model: expected str or Module or Model, got 3"),
    "images by number": (lambda g: reference.quantise(g.model, 3), "images: expected pixels, paths or batches, got 3"),
    "range images": (lambda g: reference.quantise(g.model, g.images, 0), "range_images: expected an integer of at least 1, got 0"),
    "freezing by number": (lambda g: reference.freeze(g.calibrated, g.images, 0.2), "freezing: expected Freezing, got 0.2"),
    "freeze no model": (lambda g: reference.freeze(g.model, g.images, Freezing(0.2)), "calibrated: expected Calibrated, got Model"),
    "quantisers": (lambda g: reference.with_quantisers(g.calibrated, [1]), "given: expected Mapping, got list"),
    "a quantiser": (lambda g: reference.with_quantisers(g.calibrated, {"input": 3}), "input: expected Affine, got 3"),
    "residual": (lambda g: LoweringConfig(residual_bits=16.0), "residual_bits: expected an integer in 2..32, got 16.0"),
    "index": (lambda g: LoweringConfig(gelu_index_bits=40), "gelu_index_bits: expected an integer in 2..12, got 40"),
    "headroom": (lambda g: LoweringConfig(headroom=nan), "headroom: expected 1 to 65536, got "),
    "no width": (lambda g: narrowed(g.program, 3), "widths: expected Widths, got 3"),
    "width": (
        lambda g: narrowed(g.program, replace(widths_of(g.program), residual_bits=0)),
        "residual_bits: expected an integer of at least 2, got 0",
    ),
    "batch of a price": (lambda g: cost_model.evaluate(g.program, CHIP, 0), "batch: expected an integer of at least 1, got 0"),
    "half a batch": (lambda g: cost_model.evaluate(g.program, CHIP, 1.5), "batch: expected an integer of at least 1, got 1.5"),
    "chip by name": (lambda g: cost_model.evaluate(g.program, "small-npu"), "hardware: expected Hardware, got 'small-npu'"),
    "chip by number": (lambda g: cost_model.load(3), "hardware: expected str or PathLike, got 3"),
    "estimates": (lambda g: cost_model.break_even_batch(1, 2), "frozen: expected Estimate, got 1"),
    "file by number": (lambda g: eamsim.load(3), "path: expected str or PathLike, got 3"),
    "verify no batch": (lambda g: eamsim.verify(g.program, g.images, batches=()), "batches: expected at least one, got none"),
    "verify none": (lambda g: eamsim.verify(g.program, g.images, isas=()), "isas: expected at least one, got none, which would compare"),
    "verify no thread": (lambda g: eamsim.verify(g.program, g.images, threads=()), "threads: expected at least one, got none"),
    "verify backwards": (lambda g: eamsim.verify(g.program, g.images, batches=(-1,)), "batches: expected an integer of at least 1, got -1"),
    "verify one set": (lambda g: eamsim.verify(g.program, g.images, "portable"), "isas: expected list or tuple, got 'portable'"),
    "verify a list": (lambda g: eamsim.verify(g.program, list(g.images)), "images: expected ImageSet, got list"),
    "limit": (lambda g: open_images(["x.png"], SMALL, 1.5), "limit: expected an integer of at least 1, got 1.5"),
    "batch size": (lambda g: list(in_memory(g.images).batches(0)), "batch_size: expected an integer of at least 1, got 0"),
    "spread": (lambda g: in_memory(g.images).spread(0), "images: expected an integer of at least 1, got 0"),
    "half a pixel": (lambda g: replace(SMALL, height=8.0), "preprocessing: height: expected int, got 8.0"),
    "crop as text": (lambda g: replace(SMALL, crop_pct="1"), "preprocessing: crop_pct: expected int or float, got '1'"),
    "fill": (lambda g: replace(SMALL, fill=5), "preprocessing: fill: expected tuple or list, got 5"),
    "extremes": (lambda g: put(g, lambda r: r.put_lanes(0, *map(np.uint8, lanes(g)))), "extremes: expected int64 ["),
}


@pytest.mark.parametrize("fault", OTHERS)
def test_other_arguments(good, fault):
    call, text = OTHERS[fault]
    refused(lambda: call(good), text)


def test_what_is_right_passes_in_any_layout_and_stays_as_it_was(good):
    backwards = good.images[::-1]
    backwards.flags.writeable = False
    np.testing.assert_array_equal(predict(good.model, backwards), predict(good.model, np.ascontiguousarray(backwards)))
    np.testing.assert_array_equal(good.loaded.run(backwards), good.loaded.run(np.ascontiguousarray(backwards)))
    assert [each.name for each in good.folder.iterdir() if each.suffix] == []  # of what was refused, nothing is written
    assert replace(good.frozen[0], mask=~MASK).mask.sum() == 0
