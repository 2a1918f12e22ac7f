"""`eamsim report`: what a program costs on a chip, and what freezing buys there, as one page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cost_model.chip.hardware import load
from cost_model.work.counts import share
from eamsim import __version__
from eamsim.cli.manifest import check_writable, described, manifest_path, write_manifest
from eamsim.cli.output import Json, note
from eamsim.cli.untrained import WARNING, emit_measured
from eamsim.errors import MissingExtra, UserError
from eamsim.files.container import written
from eamsim.files.origin import public_command
from eamsim.jobs.costs.findings import accuracies, findings
from eamsim.jobs.costs.rows import opened
from eamsim.jobs.load import is_untrained

if TYPE_CHECKING:
    from jinja2 import Environment

BUILT = ("model", "model_sha256", "random_init", "calibration_sha256", "tau")
"""Of the provenance, what the page says."""


def report(
    model: Annotated[str, typer.Argument(metavar="MODEL|X.eam", help="A program, or as `eamsim cost` a published name: estimates.")],
    hw: Annotated[str, typer.Option(metavar="H.yaml|PRESET", help="A hardware description (see `eamsim hardware`).")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="X.html", help="The page to write.")],
    batch: Annotated[int, typer.Option(help="Images that share one fetch of weights and maps.", min=1, max=1 << 20)] = 1,
    sweep: Annotated[Path | None, typer.Option(metavar="sweep.csv", help="Accuracy over tau, from `eamsim sweep`.")] = None,
    compare: Annotated[Path | None, typer.Option(metavar="C.json", help="The float cross-check, from `eamsim compare --json`.")] = None,
    tables: Annotated[
        list[Path] | None, typer.Option("--table", metavar="X.csv|X.md", help="The table over tau as CSV or Markdown too. May be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """One self-contained HTML page. MACs, cycles, energy, memory, masks and widths of a program on a chip, and what freezing changes."""
    check_output("--out", out, (".html",))
    check_writable("--out", manifest_path(out))
    for path in tables or ():
        check_output("--table", path, (".csv", ".md"))
    try:
        from jinja2 import Environment, StrictUndefined

        from eamsim.figures.compare import read_comparison
        from eamsim.figures.panels import short_name
        from eamsim.figures.report import draw
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"eamsim", "cost_model"}:
            raise
        raise MissingExtra("plot", "eamsim report") from error
    program, published, provenance = opened(model)
    chip = load(hw)
    found = findings(program, chip, batch, [] if sweep is None else accuracies(sweep))
    found |= {
        "title": f"{short_name(program.name)} on {chip.name}",
        "untrained": is_untrained(provenance),
        "published": published is not None,
    }
    found["comparison"] = None if compare is None else read_comparison(compare)
    manifest = {
        "command": public_command(),
        "eamsim": __version__,
        "input": [described(path) for path in (Path(model), Path(hw), sweep, compare) if path is not None and path.is_file()],
        "built": {key: provenance[key] for key in BUILT if key in provenance},
    }
    note("drawing")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    drawn = {"figures": draw(found, program, chip.compute), "tau_rows": tau_rows(found)}
    page = rendered(environment, found | drawn | {"warning": WARNING, "manifest": manifest})
    for path in tables or ():
        write(path, table_text(tau_rows(found), path.suffix))
    write(out, page)
    write_manifest(manifest_path(out), manifest | {"output": [described(path) for path in (*(tables or ()), out)]})
    lines = found["answer"]["sentence"], *found["verdicts"], f"{out}: {len(page.encode()):,} bytes, opens in any browser"
    emit_measured(found["untrained"], found | {"manifest": manifest}, as_json, *lines)


def rendered(environment: Environment, values: dict[str, Any]) -> str:
    """The page, with its script in it."""
    template, script = (files("eamsim").joinpath(f"data/report/{name}").read_text("utf-8") for name in ("report.html", "sort.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(template).render(values | {"script": script, "script_sha256": digest})


def check_output(option: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """UserError unless it can be a new file of such a name."""
    if path.suffix not in suffixes:
        raise UserError(f"{option}: expected a name that ends in {' or '.join(suffixes)}, got {path}")
    check_writable(option, path)


def write(path: Path, text: str) -> None:
    """Replace the file in one step; BadFile where it cannot be written."""
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


COLUMNS = ("macs_saved", "energy_change", "milliseconds", "cycles", "stored_map_bytes", "break_even_batch")


def tau_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The table over tau by ascending tau: scattered and whole heads of each, and the program's own masks in their place."""
    rows = [{"tau": point["tau"], "frozen": kind, **point[kind]} for point in found["curves"] for kind in ("scattered", "heads")]
    if found["row"]["tau"]:
        full = found["row"]["macs_full"] + found["row"]["macs_saved_full"]
        own = {"tau": found["row"]["tau"], "frozen": "own", "macs_saved": share(found["row"]["macs_saved_full"], full)}
        rows.append(own | found["own"])
    return sorted(rows, key=lambda row: row["tau"])


def table_text(rows: list[dict[str, Any]], suffix: str) -> str:
    """A line for each tau and kind of mask: fractions, milliseconds, cycles and bytes of one image."""
    header = ("tau", "frozen", *COLUMNS)
    cells = [
        ["" if value is None else str(value) for value in line] for line in (header, *([row[name] for name in header] for row in rows))
    ]
    if suffix == ".csv":
        return "".join(",".join(line) + "\n" for line in cells)
    cells.insert(1, ["---"] * len(header))
    return "".join("| " + " | ".join(line) + " |\n" for line in cells)
