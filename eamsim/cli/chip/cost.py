"""`eamsim cost`: multiply-accumulates and bytes of a model or an .eam file, per sparsity and softmax meaning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from cost_model.chip.hardware import Hardware, Home, load
from cost_model.models.architectures import Architecture, SwinArchitecture
from cost_model.price.energy import evaluate
from cost_model.work.counts import count
from cost_model.work.encodings import check_encoding
from cost_model.work.memory import constant_bytes
from cost_model.work.unread import unread_macs
from eamsim.cli.chip.cost_compare import compared, comparison
from eamsim.cli.chip.cost_files import write_files
from eamsim.cli.chip.cost_hardware import hardware_report
from eamsim.cli.chip.cost_tables import report
from eamsim.cli.chip.cost_validate import validation
from eamsim.cli.output import Json, emit
from eamsim.cli.shares import parse_shares
from eamsim.cli.untrained import emit_measured
from eamsim.constraints import Verified
from eamsim.errors import UserError
from eamsim.jobs.costs.chip import add_hardware
from eamsim.jobs.costs.operations import operation_rows
from eamsim.jobs.costs.rows import MEANINGS, estimated_rows, opened, own_row
from eamsim.jobs.load import is_untrained
from eamsim.program import Softmax
from eamsim.unread import without_unread_rows

DEFAULT_TAUS = "0,0.1,0.2,0.3,0.5,0.7,0.9"


def cost(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL|X.eam", help="A timm name of the paper's ViT and DeiT models, or an .eam file.")
    ] = None,
    tau: Annotated[
        str | None,
        typer.Option(help=f"Shares of frozen attention weights, such as 0.1,20%. A model's default: {DEFAULT_TAUS}"),
    ] = None,
    softmax: Annotated[Literal["paper", "renormalised", "both"], typer.Option(help="What freezing means.")] = "both",
    hw: Annotated[
        str | None,
        typer.Option(metavar="H.yaml|PRESET", help="A hardware description: adds cycles, energy and traffic (see `eamsim hardware`)."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images that share one fetch of weights and maps.", min=1, max=1 << 20)] = 1,
    encoding: Annotated[str, typer.Option(help="How frozen maps are stored: auto, bitmap, reserved, run-length, tile:16x16, ...")] = "auto",
    maps: Annotated[Home | None, typer.Option(help="The memory that holds the frozen maps, instead of the description's.")] = None,
    zero_skip: Annotated[bool, typer.Option("--zero-skip", help="The chip skips A.V where a frozen code means zero.")] = False,
    compare: Annotated[
        str | None, typer.Option(metavar="A", help="Another model or .eam file: this one (B) against it, as they are.")
    ] = None,
    scalesim: Annotated[Path | None, typer.Option(metavar="X.csv", help="Write the products as SCALE-Sim's GEMM topology.")] = None,
    zigzag: Annotated[Path | None, typer.Option(metavar="X.yaml", help="Write the products as a ZigZag workload.")] = None,
    timeline: Annotated[
        Path | None, typer.Option(metavar="X.json", help="Write when each resource is busy, for Perfetto or chrome://tracing.")
    ] = None,
    validate: Annotated[
        bool, typer.Option("--validate", help="No model: published designs beside what the cost model makes of them, as Markdown.")
    ] = False,
    as_json: Json = False,
) -> None:
    """MACs and bytes of one image; on a chip, cycles and energy. From the masks of an .eam file, or estimated per tau."""
    if validate is (model is not None):
        raise UserError(
            f"cost: expected a model or --validate, got {'both' if validate else 'neither'}; name one, such as deit_tiny_patch16_224"
        )
    if model is None:
        emit(*validation(as_json))
        return
    chip = described(hw, maps, batch, encoding, zero_skip)
    program, published, provenance = opened(model)
    if compare is not None:
        if tau is not None or scalesim or zigzag or timeline:
            raise UserError("--compare: expected no --tau, nor files of one program, beside it; two programs are compared as they are")
        other, _, other_provenance = opened(compare)
        programs = other, program
        result = compared((own_row(programs[0]), own_row(program)), programs, chip, batch, encoding)
        emit_measured(
            is_untrained(provenance) or is_untrained(other_provenance),
            {"models": [compare, model], **result},
            as_json,
            *comparison(result, (compare, model), chip, batch),
        )
        return
    estimate = chip and evaluate(program, chip, batch, encoding)
    files = write_files(program, estimate, scalesim, zigzag, timeline)
    taus = None if tau is None else parse_shares(tau, "--tau")
    facts, rows = counted(program, published, taus, MEANINGS if softmax == "both" else (softmax,))
    result, lines = {"model": model, **facts, "rows": rows}, report(model, facts, rows)
    result["operations"] = operation_rows(program, estimate)
    if chip is not None and estimate is not None:
        dense = add_hardware(rows, program, estimate, encoding)
        result |= {"hardware": chip.model_dump(), "batch": batch, "dense": dense}
        lines += hardware_report(rows, dense, chip, batch)
    if files:
        result |= {"output": files}
        lines += ("", *(f"{file['file']}: {file['bytes']:,} bytes" for file in files))
    emit_measured(is_untrained(provenance), result, as_json, *lines)


def counted(
    program: Verified, published: Architecture | SwinArchitecture | None, taus: Sequence[float] | None, meanings: tuple[Softmax, ...]
) -> tuple[dict[str, int], list[dict]]:
    """Facts of the model, and the rows: the masks of a file first, then the estimates, at DEFAULT_TAUS of a model unless given."""
    facts = {"unread_macs": sum(unread_macs(program).values())}
    if published is None:
        rows = [own_row(program)]
        if taus is not None:
            rows += estimated_rows(program, taus, meanings)
        return {"constant_bytes": constant_bytes(program), **facts}, rows
    built = count(without_unread_rows(program)).macs  # as `eamsim build` makes it
    facts = {"parameters": published.parameters, "map_elements": published.map_elements, **facts}
    facts |= {"macs_paper_without_unread_rows": built.paper, "macs_full_without_unread_rows": built.full}
    if isinstance(published, SwinArchitecture):
        facts["shared_map_elements"] = published.shared_map_elements
    return facts, estimated_rows(published, parse_shares(DEFAULT_TAUS, "--tau") if taus is None else taus, meanings)


def described(hw: str | None, maps: Home | None, batch: int, encoding: str, zero_skip: bool) -> Hardware | None:
    """The chip that --hw names, as the options change it; UserError for options that need a chip without one."""
    check_encoding(encoding)
    if hw is None:
        if maps is not None or batch != 1 or encoding != "auto" or zero_skip:
            raise UserError("--maps, --batch, --encoding and --zero-skip describe how a chip is used; name it with --hw")
        return None
    chip = load(hw) if maps is None else load(hw).with_maps_in(maps)
    return chip.with_zero_skip if zero_skip else chip
