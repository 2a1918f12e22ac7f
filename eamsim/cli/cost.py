"""`eamsim cost`: multiply-accumulates and bytes of a model or an .eam file, per sparsity and softmax meaning."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from cost_model.architectures import Architecture, Swin, architecture
from cost_model.counts import Cost, Macs, constant_share, count, frozen_share, granularity, share
from cost_model.energy import evaluate
from cost_model.hardware import Hardware, Level, load
from cost_model.ledger import structured_macs, zero_code_macs
from cost_model.masks import check_encoding
from cost_model.memory import constant_bytes
from cost_model.paper import architecture_of, estimate
from cost_model.skeleton import skeleton
from cost_model.unread import unread_macs
from eamsim import artifact
from eamsim.cli.cost_compare import compared, comparison
from eamsim.cli.cost_files import write_products
from eamsim.cli.cost_hardware import add_hardware, hardware_report
from eamsim.cli.cost_operations import operation_rows
from eamsim.cli.output import Json, table
from eamsim.cli.shares import parse_shares
from eamsim.cli.untrained import emit_measured, is_untrained
from eamsim.errors import UserError
from eamsim.program import Attention, Softmax
from eamsim.verify import Verified

DEFAULT_TAUS = "0,0.1,0.2,0.3,0.5,0.7,0.9"
MEANINGS: tuple[Softmax, ...] = ("paper", "renormalised")


def cost(
    model: Annotated[str, typer.Argument(metavar="MODEL|X.eam", help="A timm name of the paper's ViT and DeiT models, or an .eam file.")],
    tau: Annotated[
        str | None, typer.Option(help=f"Shares of frozen attention weights, such as 0.1,20%. A model's default: {DEFAULT_TAUS}")
    ] = None,
    softmax: Annotated[Literal["paper", "renormalised", "both"], typer.Option(help="What freezing means.")] = "both",
    hw: Annotated[
        str | None, typer.Option(metavar="H.yaml|PRESET", help="A hardware description: adds cycles, energy and traffic (docs/cost.md).")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images that share one fetch of weights and maps.", min=1, max=1 << 20)] = 1,
    encoding: Annotated[str, typer.Option(help="How frozen maps are stored: auto, bitmap, ... (docs/cost.md).")] = "auto",
    maps: Annotated[Level | None, typer.Option(help="The memory that holds the frozen maps, instead of the description's.")] = None,
    zero_skip: Annotated[bool, typer.Option("--zero-skip", help="The chip skips A.V where a frozen code means zero.")] = False,
    compare: Annotated[
        str | None, typer.Option(metavar="A", help="Another model or .eam file: this one (B) against it, as they are.")
    ] = None,
    scalesim: Annotated[Path | None, typer.Option(metavar="X.csv", help="Write the products as SCALE-Sim's GEMM topology.")] = None,
    zigzag: Annotated[Path | None, typer.Option(metavar="X.yaml", help="Write the products as a ZigZag workload.")] = None,
    as_json: Json = False,
) -> None:
    """MACs and bytes of one image; on a chip, cycles and energy. From the masks of an .eam file, or estimated per tau."""
    chip = described(hw, maps, batch, encoding, zero_skip)
    program, published, untrained = opened(model)
    if compare is not None:
        if tau is not None or scalesim or zigzag:
            raise UserError("--compare: expected no --tau, --scalesim or --zigzag beside it; two programs are compared as they are")
        other, _, other_untrained = opened(compare)
        programs = other, program
        result = compared((own_row(programs[0]), own_row(program)), programs, chip, batch, encoding)
        emit_measured(
            untrained or other_untrained,
            {"models": [compare, model], **result},
            as_json,
            *comparison(result, (compare, model), chip, batch),
        )
        return
    files = write_products(program, scalesim, zigzag)
    facts, rows = counted(program, published, tau, MEANINGS if softmax == "both" else (softmax,))
    result, lines = {"model": model, **facts, "rows": rows}, report(model, facts, rows)
    result["operations"] = operation_rows(program, chip and evaluate(program, chip, batch, encoding))
    if chip is not None:
        dense = add_hardware(rows, program, chip, batch, encoding)
        result |= {"hardware": chip.model_dump(), "batch": batch, "dense": dense}
        lines += hardware_report(rows, dense, chip, batch)
    if files:
        result |= {"output": files}
        lines += ("", *(f"{file['file']}: {file['bytes']:,} bytes" for file in files))
    emit_measured(untrained, result, as_json, *lines)


def opened(model: str) -> tuple[Verified, Architecture | Swin | None, bool]:
    """The program of an .eam file, and whether its weights are untrained; or the shapes of a published model, with its architecture."""
    if Path(model).suffix == ".eam" or Path(model).is_file():
        program, provenance = artifact.read(model)
        return program, None, is_untrained(provenance)
    published = architecture(model)
    return skeleton(published), published, False


def counted(
    program: Verified, published: Architecture | Swin | None, tau: str | None, meanings: tuple[Softmax, ...]
) -> tuple[dict[str, int], list[dict]]:
    """Facts of the model, and the rows: the masks of a file first, then the estimates."""
    facts = {"unread_macs": sum(unread_macs(program).values())}
    if published is None:
        rows = [own_row(program)]
        if tau is not None:
            rows += estimated_rows(architecture_of(program), parse_shares(tau, "--tau"), meanings)
        return {"constant_bytes": constant_bytes(program), **facts}, rows
    facts = {"parameters": published.parameters, "map_elements": published.map_elements, **facts}
    if isinstance(published, Swin):
        facts["shared_map_elements"] = published.shared_map_elements
    return facts, estimated_rows(published, parse_shares(DEFAULT_TAUS if tau is None else tau, "--tau"), meanings)


def described(hw: str | None, maps: Level | None, batch: int, encoding: str, zero_skip: bool) -> Hardware | None:
    """The chip that --hw names, as the options change it; UserError for options that need a chip without one."""
    check_encoding(encoding)
    if hw is None:
        if maps is not None or batch != 1 or encoding != "auto" or zero_skip:
            raise UserError("--maps, --batch, --encoding and --zero-skip describe how a chip is used; name it with --hw")
        return None
    chip = load(hw) if maps is None else load(hw).with_maps_in(maps)
    return chip.with_zero_skip if zero_skip else chip


def estimated_rows(model: Architecture | Swin, taus: list[float], meanings: tuple[Softmax, ...]) -> list[dict]:
    """One row per tau and meaning, for scattered weights."""
    excluded = model.excluded_share if isinstance(model, Swin) else 0.0
    return [
        {
            "tau": tau,
            "tau_with_excluded": tau + (1 - tau) * excluded,
            "softmax": meaning,
            "granularity": "weight",
            "estimated": True,
            **figures(estimate(model, tau, meaning)),
        }
        for tau in taus
        for meaning in meanings
    ]


def own_row(program: Verified) -> dict:
    """The row of the program's own masks."""
    return {
        "tau": frozen_share(program),
        "tau_with_excluded": constant_share(program),
        "softmax": "+".join(sorted({op.softmax for op in program.operations if isinstance(op, Attention)})),
        "granularity": granularity(program),
        "estimated": False,
        **figures(count(program)),
        **unneeded(program),
    }


def unneeded(program: Verified) -> dict[str, int]:
    """MACs that the program has and a cleverer chip would leave out (docs/cost.md, Meanings)."""
    attentions = [op for op in program.operations if isinstance(op, Attention)]
    return {
        "zero_code_macs": sum(zero_code_macs(op) for op in attentions),
        "structured_macs": sum(structured_macs(program, op) for op in attentions),
        "unread_macs": sum(unread_macs(program).values()),
    }


def figures(total: Cost) -> dict:
    """The numbers of one row: exact integers, in MACs, operations (2 per MAC) and bytes."""
    macs = total.macs
    return {
        "macs_paper": macs.paper,
        "macs_full": macs.full,
        "flops_2x_paper": 2 * macs.paper,
        "flops_2x_full": 2 * macs.full,
        "qk_macs": macs.scores,
        "av_macs": macs.attention_value,
        "macs_saved_full": total.dense.full - macs.full,
        "macs_by_layer": asdict(macs),
        "dense_macs_by_layer": asdict(total.dense),
        "weight_bytes": total.weight_bytes,
        "activation_bytes": total.activation_bytes,
        "map_bytes": total.map_bytes,
        "mask_bytes": total.mask_bytes,
        "code_bytes": total.code_bytes,
    }


def report(model: str, facts: dict[str, int], rows: list[dict]) -> tuple[str | Table, ...]:
    """Where the MACs of the dense network are, what each row saves of them, and why it cannot be more."""
    dense = Macs(**rows[0]["dense_macs_by_layer"])
    sizes = facts | {"activation_bytes": rows[0]["activation_bytes"]}
    return (
        f"{model}, one image, nothing frozen:",
        "",
        layer_table(dense),
        "",
        *(f"{name.replace('_', ' ')}: {size:,}" for name, size in sizes.items()),
        "",
        "What freezing buys (M = 10^6 MACs, MACs saved: of the full scope):",
        "",
        saving_table(rows),
        *excluded_note(rows),
        *unneeded_note(rows[0]),
        "",
        *footnote(dense),
    )


def layer_table(dense: Macs) -> Table:
    """MACs of the dense network by layer, and both totals."""
    totals = {"Eq. 9 (paper scope)": dense.paper, "full scope": dense.full}
    rows = [
        (name, f"{macs:,}", f"{2 * macs:,}", f"{100 * share(macs, dense.full):.2f}")
        for name, macs in (asdict(dense) | totals).items()
        if macs
    ]
    return table(("layer", "MACs", "2x (FLOPs)", "share %"), rows)


def saving_table(rows: list[dict]) -> Table:
    """One line per row: the share of the MACs saved, the MACs left, and the bytes of weights and frozen maps.

    With the pairs that a Swin's shifted windows exclude, tau has a column of its own.
    """
    lines, excludes = [], any(row["tau_with_excluded"] != row["tau"] for row in rows)
    for row in rows:
        saved = 100 * share(row["macs_saved_full"], row["macs_saved_full"] + row["macs_full"])
        millions = (f"{row[key] / 1e6:,.3f}" for key in ("macs_full", "macs_paper"))
        stored = f"{row['weight_bytes'] / 1e6:.3f}", f"{row['map_bytes']:,}"
        source = "estimate" if row["estimated"] else "masks"
        taus = f"{row['tau']:.4g}", *([f"{row['tau_with_excluded']:.4g}"] if excludes else [])
        lines.append((row["softmax"], *taus, f"{saved:.2f}", *millions, *stored, source))
    taus = ("tau", *(["with excluded"] if excludes else []))
    return table(("softmax", *taus, "MACs saved %", "full, M", "Eq. 9, M", "weights MB", "map bytes", "from"), lines, keys=1 + len(taus))


def excluded_note(rows: list[dict]) -> tuple[str, ...]:
    """What the column `with excluded` holds, where there is one."""
    if all(row["tau_with_excluded"] == row["tau"] for row in rows):
        return ()
    return ("", "Pairs that shifted windows exclude are 0 whatever the image, and no part of tau; `with excluded` counts them as frozen.")


def unneeded_note(row: dict) -> tuple[str, ...]:
    """What zero-skip and structure would save of real masks."""
    if row["estimated"]:
        return ()
    shares = {
        name: f"{row[f'{name}_macs']:,} ({share(row[f'{name}_macs'], row['macs_full']):.2%})"
        for name in ("zero_code", "structured", "unread")
    }
    return (
        "",
        f"Of the MACs left, frozen codes that mean zero or excluded pairs take {shares['zero_code']}; q, k and scores that no code",
        f"depends on {shares['structured']}; rows that nobody reads {shares['unread']}.",
    )


def footnote(dense: Macs) -> tuple[str, ...]:
    """What the savings mean, in plain words, with the ceilings of Amdahl's law."""
    scores = share(dense.scores, dense.full)
    heads = scores + share(2 * dense.qkv / 3, dense.full)
    return (
        "paper: the softmax denominator needs every score, so freezing saves nothing.",
        f"renormalised: frozen scores are not computed. At most the QK^T share is saved: {scores:.2%} ({1 / (1 - scores):.3f}x).",
        f"Only a wholly frozen head drops its q and k projections too. At most (tau = 1): {heads:.2%} ({1 / (1 - heads):.3f}x).",
        "A.V is computed in full either way. Estimates: round(tau * N^2) scattered weights per head. MACs are not cycles.",
    )
