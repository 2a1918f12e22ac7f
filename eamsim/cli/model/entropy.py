"""`eamsim entropy`: entropy, mean and variance of every attention weight, of the float model, the quantised one, or both."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer
from rich.table import Table

from eamsim.cli.extras import import_reference
from eamsim.cli.manifest import check_out, described, manifest_path, write_manifest
from eamsim.cli.output import Json, Limit, progress, table
from eamsim.cli.untrained import emit_measured
from eamsim.errors import UserError
from eamsim.files.origin import public_command
from eamsim.jobs.load import is_untrained

if TYPE_CHECKING:
    from reference.attention.statistics_file import Statistics

GIB = 1 << 30


def entropy(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A timm name, local-dir:DIR or hf-hub:ID.")],
    calib: Annotated[list[Path], typer.Option(help="Images to measure on: folders, image files, .npz files. May be repeated.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="X.h5", help="The file to write; X.h5.json beside it says how it was made.")],
    of: Annotated[
        Literal["float", "quantised", "both"], typer.Option(help="The model measured; both gives their divergence too.")
    ] = "both",
    memory: Annotated[float, typer.Option(metavar="GIB", help="At most so much for histograms; more layers take more passes.")] = 4,
    histograms: Annotated[bool, typer.Option("--histograms", help="Store the histograms too: 512 bytes an attention weight.")] = False,
    weights: Annotated[str | None, typer.Option(help="A .safetensors file, local-dir:DIR or hf-hub:ID.")] = None,
    random_init: Annotated[int | None, typer.Option(metavar="SEED", help="Untrained weights of this seed.", min=0, max=2**63 - 1)] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Accept weights in a pickle (read with weights_only).")] = False,
    limit: Limit = None,
    calib_images: Annotated[int, typer.Option(help="So many of them set the ranges of the quantisers.", min=1)] = 32,
    as_json: Json = False,
) -> None:
    """Entropy of attention weights. Histograms over images (Eq. 11-13), and how far quantisation moves them (Eq. 14).

    An interrupted run leaves X.h5.progress; the same command continues from there.
    """
    check_out(out, ".h5")
    if not 0 < memory < math.inf:
        raise UserError(f"--memory: expected GiB above 0, got {memory}; write 4 for four GiB")
    import_reference("eamsim entropy")
    from reference.attention.measure import measure_model
    from reference.attention.statistics_file import read_statistics

    command = public_command()
    try:
        rate = measure_model(
            model,
            calib,
            out,
            progress,
            of=of,
            command=command,
            memory_bytes=int(memory * GIB),
            histograms=histograms,
            weights=weights,
            random_init=random_init,
            allow_pickle=allow_pickle,
            limit=limit,
            range_images=calib_images,
        )
    except KeyboardInterrupt as stop:
        stop.add_note(kept(out))
        raise
    statistics = read_statistics(out)
    output = described(out)
    manifest = {"command": command, "images": statistics.header.images, **statistics.header.origin, "output": output}
    write_manifest(manifest_path(out), manifest)
    rows = head_rows(statistics)
    result = manifest | {"sources": statistics.header.sources, "images_per_second": rate, "heads": rows}
    emit_measured(
        is_untrained(statistics.header.origin),
        result,
        as_json,
        head_table(rows),
        f"{out}: {output['bytes']:,} bytes, {statistics.header.images} images, {rate:,.1f} images/s",
    )


def kept(out: Path) -> str:
    """What an interruption leaves."""
    saved = out.with_name(out.name + ".progress")
    what = f"the same command continues from what was last saved in {saved}" if saved.exists() else "nothing was saved so far"
    return f"{out} is not written; {what}"


def head_rows(statistics: Statistics) -> list[dict[str, Any]]:
    """Per layer and head and model measured: mean, min and max of the entropy in bits, share of weights where it is zero; divergence.

    A head has a map in every window of a Swin, and they count together. Pairs that take no part count for nothing, but for the share
    of them, `excluded`.
    """
    header, rows = statistics.header, []
    for layer, (heads, left_out) in enumerate(zip(header.heads, statistics.excluded, strict=True)):
        live = np.ones(header.shapes[layer], np.bool_) if left_out is None else ~left_out
        for head in range(heads):
            own = live[head::heads]
            row: dict[str, Any] = {"layer": layer, "head": head, "excluded": 1 - float(own.mean())}
            for source in header.sources:
                bits = statistics.entropy[source][layer][head::heads][own]
                ends = {"mean": float(bits.mean()), "min": float(bits.min()), "max": float(bits.max())}
                row[source] = ends | {"zero": float((bits == 0).mean())}
            if statistics.divergence is not None:
                bits = statistics.divergence[layer][head::heads][own]
                row["divergence"] = {"mean": float(bits.mean()), "max": float(bits.max())}
            rows.append(row)
    return rows


def head_table(rows: list[dict[str, Any]]) -> Table:
    """The rows as a table, a line for each model measured; the divergence is on the quantised model's."""
    body, excludes = [], any(row["excluded"] for row in rows)
    for row in rows:
        for source in (source for source in ("float", "quantised") if source in row):
            bits = row[source]
            moved = row.get("divergence") if source == "quantised" else None
            body.append(
                [row["layer"], row["head"], source, *(f"{bits[name]:.3f}" for name in ("mean", "min", "max")), f"{bits['zero']:.1%}"]
                + ([f"{moved['mean']:.3f}", f"{moved['max']:.3f}"] if moved else ["", ""])
                + ([f"{row['excluded']:.1%}"] if excludes else [])
            )
    names = ["layer", "head", "model", "mean bits", "min", "max", "zero", "divergence mean", "max"]
    return table(names + (["left out"] if excludes else []), body, keys=3)
