"""`eamsim compare`: the integers of a program beside the float model it was built from, value by value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from eamsim.cli.inputs import Isa, ModelFile, load_engine
from eamsim.cli.output import Json, Limit, Threads, progress, table
from eamsim.cli.untrained import emit_measured
from eamsim.errors import MissingExtra, UserError
from eamsim.inputs.images import open_images
from eamsim.inputs.labels import HELP
from eamsim.jobs.load import is_untrained, read_model

BATCH = 2
"""So few stay in the caches."""
SOURCE_IMAGES = 16
"""Each source takes a pass over them, and a share is a mean over all their logits."""


def compare(
    program_file: ModelFile,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="What it was built from: a timm name, local-dir:DIR or hf-hub:ID.")],
    data: Annotated[list[Path], typer.Option("--data", help="Images, labelled or not. May be repeated.")],
    weights: Annotated[str | None, typer.Option(help="A .safetensors file, local-dir:DIR or hf-hub:ID.")] = None,
    random_init: Annotated[int | None, typer.Option(metavar="SEED", help="Untrained weights of this seed.", min=0, max=2**63 - 1)] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Accept weights in a pickle (read with weights_only).")] = False,
    labels: Annotated[str | None, typer.Option("--labels", metavar="by-name|by-order|FILE", help=HELP)] = None,
    limit: Limit = None,
    sources: Annotated[bool, typer.Option("--sources", help="Each kind of quantiser alone too: a pass for each, on 16 images.")] = False,
    threads: Threads = None,
    isa: Isa = None,
    as_json: Json = False,
) -> None:
    """The integers against PyTorch, value by value. Noise, saturation, codes and decisions, beside float and fake quantisation."""
    try:
        from reference.attention.collect import parameters_sha256
        from reference.crosscheck import compare as comparison
        from reference.crosscheck.noise_sources import noise_shares, sources_of
        from reference.crosscheck.rebuild import rebuild
        from reference.models.load import load_model
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"eamsim", "reference"}:
            raise
        raise MissingExtra("reference", "eamsim compare") from error
    program, preprocessing, labelling, provenance = read_model(program_file)
    size = (preprocessing.height, preprocessing.width)
    loaded = load_model(model, weights, random_init, allow_pickle, size)
    if provenance.get("model_sha256") != parameters_sha256(loaded.module):
        raise UserError(f"{program_file}: was built from other weights than those of {loaded.name}; give the model it was built from")
    images = open_images(data, preprocessing, limit, replace(labelling, choice=labels, required=labels is not None))
    rebuilt = rebuild(program, provenance, loaded)
    wanted, engine = comparison.tap_names(rebuilt), load_engine(program, threads, isa)

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        return engine.run(batch, taps=lambda name: name in wanted)[1]

    with progress("images compared", len(images)) as advance:
        result = comparison.compare(rebuilt, images.batches(BATCH), run, images.labels, advance)
    if sources:
        groups, some = sources_of(rebuilt), images.spread(SOURCE_IMAGES)
        with progress("passes", len(some) * len(groups)) as advance:
            shares = noise_shares(rebuilt, groups, some.batches(BATCH), advance)
        result |= {"sources": shares, "source_images": len(some)}
    emit_measured(is_untrained(provenance), result | {"data": images.summary.json()}, as_json, *lines(result))


def lines(result: dict[str, Any]) -> list[Any]:
    """The tables and sentences of a comparison."""
    rows = [
        (
            row["value"],
            shown(row["snr_db"], "{:.1f}"),
            shown(row["cosine"], "{:.4f}"),
            shown(row["at_low"], "{:.1%}"),
            shown(row["at_high"], "{:.1%}"),
            shown(row["fake_snr_db"], "{:.1f}"),
            shown(row["codes_differ"], "{:.2%}"),
        )
        for row in result["values"]
    ]
    found: list[Any] = [table(("value", "SNR, dB", "cosine", "at low end", "at high end", "fake: SNR, dB", "fake: codes differ"), rows)]
    for name, each in result["decisions"].items():
        margin = f", by {each['margin_mean']:.3f} on average, {each['margin_max']:.3f} at most" if each["differ"] else ""
        found.append(f"decisions that differ from {name}: {each['differ']:.2%}{margin}")
    found.append(f"logits of fake quantisation: SNR {shown(result['fake_logits_snr_db'], '{:.1f}')} dB against float")
    if result["top1"]:
        found.append("top-1: " + ", ".join(f"{name} {share:.2%}" for name, share in result["top1"].items()))
        gained = [
            f"{100 * each['mean']:+.2f} \N{PLUS-MINUS SIGN} {100 * each['standard_error']:.2f} over {name}"
            for name, each in result["top1_change"].items()
        ]
        found.append(f"points that the program gains: {', '.join(gained)}")
    if "sources" in result:
        ordered = sorted(result["sources"], key=lambda row: -(row["share"] or 0))
        found.append(
            table(("one source alone", "share of logit variance"), [(row["source"], shown(row["share"], "{:.2%}")) for row in ordered])
        )
    return found


def shown(number: float | None, form: str) -> str:
    """`-` for what is not defined."""
    return "-" if number is None else form.format(number)
