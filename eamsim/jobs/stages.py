"""One model's accuracy at every stage of the chain, as a Markdown table: `python -m eamsim.jobs.stages MODEL --calib D --data D`.

Columns: float; RepQ-ViT as published and hardware-true (nothing frozen); EAM with float means and with int4 codes, both
fake-quantised; and the integer engine on the lowered program.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.inputs.images import open_images
from eamsim.jobs.build import labelling
from eamsim.jobs.evaluate import evaluate, evaluate_program
from eamsim.program import Softmax
from eamsim.progress import silent
from reference.attention.collect import attention_statistics, calibrate_on, frozen_maps
from reference.attention.freeze import Freezing, Order, Scope
from reference.attention.output_change import OutputChange
from reference.lowering.program import lower
from reference.models.load import load_model
from reference.quantisation.fakequant import quantise_frozen

BATCH = 50
MEANINGS: tuple[Softmax, ...] = ("paper", "renormalised")
HEADER = ("tau", "softmax", "float", "published", "hardware-true", "EAM, float means", "EAM, int4", "integer engine")


def rows(spec: str, calib: Sequence[Path], data_source: Sequence[Path], choices: Sequence[Freezing], range_images: int) -> Iterator[tuple]:
    """A tuple of HEADER per choice of frozen weights and meaning of the softmax; fractions."""
    model = load_model(spec)
    images = open_images(calib, model.preprocessing)
    data = open_images(data_source, model.preprocessing, labelling=labelling(model))
    labels = data.labels
    if labels is None:
        raise UserError("--data: expected labelled images, got images alone; give an ImageFolder or an .npz with labels")

    def top1(network, frozen=None, softmax: Softmax = "paper") -> float:
        return evaluate(network, data.batches(BATCH), labels, frozen, softmax).top1

    def engine_top1(program: Verified) -> float:
        return evaluate_program(program, data.batches(BATCH), labels).top1

    published, hardware = (calibrate_on(model, images, range_images, mode=mode) for mode in ("published", "hardware"))
    base = (top1(model), top1(published), top1(hardware))
    yield 0.0, "-", *base, base[2], base[2], engine_top1(lower(hardware))
    change = OutputChange(hardware.network)
    statistics = attention_statistics(hardware, images, silent, change)
    for choice in choices:
        frozen = frozen_maps(statistics, choice, change)
        on_grid = quantise_frozen(hardware, frozen)
        for softmax in MEANINGS:
            fake = (top1(hardware, maps, softmax) for maps in (frozen, on_grid))
            yield choice.tau, softmax, *base, *fake, engine_top1(lower(hardware, frozen, softmax))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calib", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--tau", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.5])
    parser.add_argument("--granularity", default="weight", metavar="weight|row|column|head|tile:RxC")
    parser.add_argument("--scope", default="head", choices=get_args(Scope))
    parser.add_argument("--order", default="entropy", choices=get_args(Order))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calib-images", type=int, default=32)
    options = parser.parse_args()
    choices = [Freezing(tau, options.granularity, options.scope, options.order, options.seed) for tau in options.tau]
    show = partial(print, flush=True)
    show(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for tau, softmax, *fractions in rows(options.model, options.calib, options.data, choices, options.calib_images):
        show(f"| {tau:g} | {softmax} | {' | '.join(f'{100 * fraction:.2f}' for fraction in fractions)} |")


if __name__ == "__main__":
    main()
