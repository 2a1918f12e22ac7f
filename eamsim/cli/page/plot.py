"""`eamsim plot`: the paper's figures and its Table 1 from files of `eamsim entropy` and `eamsim sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eamsim.cli.inputs import FigureFolder, Weights
from eamsim.cli.output import Json
from eamsim.cli.page import drawing
from eamsim.cli.shares import parse_shares

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)

StatisticsFile = Annotated[Path, typer.Argument(metavar="STATS.h5", help="Written by `eamsim entropy`.")]
SweepFiles = Annotated[list[Path], typer.Argument(metavar="SWEEP.csv...", help="Written by `eamsim sweep`; several for several models.")]
Of = Annotated[drawing.Source | None, typer.Option(help="The model measured; float unless only the other one was.")]
Layers = Annotated[list[int] | None, typer.Option(metavar="N", help="Layer of a map; may be repeated, --head as often.", min=0)]
Heads = Annotated[list[int] | None, typer.Option(metavar="N", help="Head of a map; without any, those of least and greatest mean.", min=0)]


@app.callback()
def plot() -> None:
    """The paper's figures, as PNG and SVG for a two-column paper. Layers and heads are counted from 0."""


@app.command()
def fig1(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A timm name, local-dir:DIR or hf-hub:ID.")],
    image: Annotated[Path, typer.Option(help="An image file, a folder of images or an .npz.")],
    out: FigureFolder,
    index: Annotated[int, typer.Option(help="Which of the images, from 0.", min=0)] = 0,
    layer: Annotated[int, typer.Option(help="From 0, or from -1 backwards.")] = -1,
    calib: Annotated[list[Path] | None, typer.Option(help="Calibration images, to show the quantised model too. May be repeated.")] = None,
    calib_images: Annotated[int, typer.Option(help="So many of them set the ranges of the quantisers.", min=1)] = 32,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Attention over an image. What the class token of a layer attends to, head by head; in a Swin, the mean over all tokens."""
    drawing.fig1(model, image, out, index, layer, calib, calib_images, weights, as_json)


@app.command()
def fig2(
    statistics: StatisticsFile,
    out: FigureFolder,
    of: Of = None,
    heads: Annotated[int, typer.Option(help="So many, from the first of layer 0 on.", min=1)] = 6,
    as_json: Json = False,
) -> None:
    """Entropy of the first heads. The class token's attention to every patch (Eq. 13)."""
    drawing.fig2(statistics, out, of, heads, as_json)


@app.command()
def fig3(
    statistics: StatisticsFile, out: FigureFolder, of: Of = None, layer: Layers = None, head: Heads = None, as_json: Json = False
) -> None:
    """Full entropy maps of some heads. Every attention weight, queries by keys (Eq. 13)."""
    drawing.fig3(statistics, out, of, layer, head, as_json)


@app.command()
def fig4(statistics: StatisticsFile, out: FigureFolder, layer: Layers = None, head: Heads = None, as_json: Json = False) -> None:
    """Divergence of the quantised model. Mean and maximum of every head, maps of some (Eq. 14)."""
    drawing.fig4(statistics, out, layer, head, as_json)


@app.command()
def fig5(sweeps: SweepFiles, out: FigureFolder, as_json: Json = False) -> None:
    """Accuracy against tau. Both EAM variants and the baselines."""
    drawing.fig5(sweeps, out, as_json)


@app.command()
def fig6(sweeps: SweepFiles, out: FigureFolder, as_json: Json = False) -> None:
    """EAM against random fixing. Mean over the seeds, and a band from the lowest to the highest."""
    drawing.fig6(sweeps, out, as_json)


@app.command()
def front(
    table: Annotated[Path, typer.Argument(metavar="FRONT.csv", help="Written by the budget search of `eamsim build`.")],
    out: FigureFolder,
    as_json: Json = False,
) -> None:
    """Accuracy against MACs saved. The trials of a budget search and their Pareto front."""
    drawing.import_matplotlib()
    from eamsim.figures.curves import front_figure
    from eamsim.jobs.search.front import read_front

    drawing.finish("front", front_figure(read_front(table)), out, drawing.read_from(table), as_json)


@app.command()
def widths(
    table: Annotated[Path, typer.Argument(metavar="Y.eam.widths.csv", help="Written by `eamsim widths`.")],
    out: FigureFolder,
    as_json: Json = False,
) -> None:
    """What narrower datapaths do. The noise of each width alone, and the accuracy that was lost together against the cost."""
    drawing.import_matplotlib()
    from eamsim.figures.widths import widths_figure
    from eamsim.jobs.search.widths import read_trials

    drawing.finish("widths", widths_figure(read_trials(table)), out, drawing.read_from(table), as_json)


@app.command()
def compare(
    comparison: Annotated[Path, typer.Argument(metavar="COMPARISON.json", help="What `eamsim compare --json` printed.")],
    out: FigureFolder,
    as_json: Json = False,
) -> None:
    """The integers against PyTorch. How the error grows from block to block, and where it is born."""
    drawing.import_matplotlib()
    from eamsim.figures.compare import compare_figure, read_comparison

    drawing.finish("compare", compare_figure(read_comparison(comparison)), out, drawing.read_from(comparison), as_json)


@app.command()
def designs(
    table: Annotated[Path, typer.Argument(metavar="DESIGNS.csv", help="Written by `eamsim search -o`.")],
    out: FigureFolder,
    as_json: Json = False,
) -> None:
    """The chips of a search. Energy against latency, and those that no other beats."""
    drawing.import_matplotlib()
    from eamsim.figures.designs import designs_figure
    from eamsim.jobs.search.design_table import read_designs

    drawing.finish("designs", designs_figure(read_designs(table)), out, drawing.read_from(table), as_json)


@app.command()
def table1(
    sweeps: SweepFiles,
    out: FigureFolder,
    tau: Annotated[str, typer.Option(help="Shares of frozen weights, with commas between.")] = "0.1,0.2",
    as_json: Json = False,
) -> None:
    """Table 1 of the paper. A column a model, a line a method, as Markdown and CSV."""
    drawing.table1(sweeps, out, parse_shares(tau, "--tau"), as_json)
