"""`eamsim plot`: the paper's figures and its Table 1 from files of `eamsim entropy` and `eamsim sweep`."""

from __future__ import annotations

import sys
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from eamsim import __version__
from eamsim.cli.extras import import_reference
from eamsim.cli.manifest import described, make_folder, write_manifest
from eamsim.cli.output import Json, emit, progress
from eamsim.cli.shares import parse_shares
from eamsim.errors import BadFile, MissingExtra, UserError
from eamsim.files.container import replacing
from eamsim.files.origin import public_command
from eamsim.inputs.images import open_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)

StatisticsFile = Annotated[Path, typer.Argument(metavar="STATS.h5", help="Written by `eamsim entropy`.")]
SweepFiles = Annotated[list[Path], typer.Argument(metavar="SWEEP.csv...", help="Written by `eamsim sweep`; several for several models.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder for the files and their manifest, NAME.json.")]
Weights = Annotated[str | None, typer.Option(help="A .safetensors file, local-dir:DIR or hf-hub:ID.")]
Of = Annotated[Literal["float", "quantised"] | None, typer.Option(help="The model measured; float unless only the other one was.")]
Layers = Annotated[list[int] | None, typer.Option(metavar="N", help="Layer of a map; may be repeated, --head as often.", min=0)]
Heads = Annotated[list[int] | None, typer.Option(metavar="N", help="Head of a map; without any, those of least and greatest mean.", min=0)]


@app.callback()
def plot() -> None:
    """The paper's figures, as PNG and SVG for a two-column paper. Layers and heads are counted from 0."""


@app.command()
def fig1(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A timm name, local-dir:DIR or hf-hub:ID.")],
    image: Annotated[Path, typer.Option(help="An image file, a folder of images or an .npz.")],
    out: Out,
    index: Annotated[int, typer.Option(help="Which of the images, from 0.", min=0)] = 0,
    layer: Annotated[int, typer.Option(help="From 0, or from -1 backwards.")] = -1,
    calib: Annotated[list[Path] | None, typer.Option(help="Calibration images, to show the quantised model too. May be repeated.")] = None,
    calib_images: Annotated[int, typer.Option(help="So many of them set the ranges of the quantisers.", min=1)] = 32,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Attention over an image. What the class token of a layer attends to, head by head; in a Swin, the mean over all tokens."""
    import_matplotlib()
    import_reference("eamsim plot fig1")
    from eamsim.figures.maps import attention_over_image, over_patches
    from reference.attention.class_attention import attention_of_image
    from reference.attention.collect import calibrate_on, parameters_sha256
    from reference.models.load import load_model

    loaded = load_model(model, weights)
    images = open_images([image], loaded.preprocessing)
    if index >= len(images):
        raise UserError(f"--index: expected 0 to {len(images) - 1}, got {index}")
    pixels = next(islice(images.batches(1), index, None))[0]
    layer, attention = attention_of_image(loaded, pixels, layer)
    maps = {"float": attention}
    origin: dict[str, Any] = {"model_sha256": parameters_sha256(loaded.module), "images_sha256": images.sha256}
    if calib:
        calibration = open_images(calib, loaded.preprocessing)
        _, maps["quantised"] = attention_of_image(calibrate_on(loaded, calibration, calib_images, progress), pixels, layer)
        origin["calibration_sha256"] = calibration.sha256
    heads, excluded = loaded.network.blocks[layer].heads, loaded.network.maps[layer].excluded
    rows = {name: over_patches(each, heads, excluded) for name, each in maps.items()}
    finish("fig1", attention_over_image(pixels, rows, layer), out, origin, as_json)


@app.command()
def fig2(
    statistics: StatisticsFile,
    out: Out,
    of: Of = None,
    heads: Annotated[int, typer.Option(help="So many, from the first of layer 0 on.", min=1)] = 6,
    as_json: Json = False,
) -> None:
    """Entropy of the first heads. The class token's attention to every patch (Eq. 13)."""
    import_matplotlib()
    from eamsim.figures.maps import class_entropy
    from reference.attention.statistics_file import read_statistics

    found = read_statistics(statistics)
    figure = class_entropy(found, of or found.header.sources[0], heads)
    finish("fig2", figure, out, read_from(statistics), as_json)


@app.command()
def fig3(statistics: StatisticsFile, out: Out, of: Of = None, layer: Layers = None, head: Heads = None, as_json: Json = False) -> None:
    """Full entropy maps of some heads. Every attention weight, queries by keys (Eq. 13)."""
    import_matplotlib()
    from eamsim.figures.maps import full_entropy
    from reference.attention.statistics_file import read_statistics

    found = read_statistics(statistics)
    figure = full_entropy(found, of or found.header.sources[0], places(layer, head))
    finish("fig3", figure, out, read_from(statistics), as_json)


@app.command()
def fig4(statistics: StatisticsFile, out: Out, layer: Layers = None, head: Heads = None, as_json: Json = False) -> None:
    """Divergence of the quantised model. Mean and maximum of every head, maps of some (Eq. 14)."""
    import_matplotlib()
    from eamsim.figures.maps import divergence
    from reference.attention.statistics_file import read_statistics

    figure = divergence(read_statistics(statistics), places(layer, head))
    finish("fig4", figure, out, read_from(statistics), as_json)


@app.command()
def fig5(sweeps: SweepFiles, out: Out, as_json: Json = False) -> None:
    """Accuracy against tau. Both EAM variants and the baselines."""
    import_matplotlib()
    from eamsim.figures.curves import accuracy_figure
    from eamsim.figures.panels import accuracy_panels, read_sweeps

    figure = accuracy_figure(accuracy_panels(read_sweeps(sweeps)))
    finish("fig5", figure, out, read_from(*sweeps), as_json)


@app.command()
def fig6(sweeps: SweepFiles, out: Out, as_json: Json = False) -> None:
    """EAM against random fixing. Mean over the seeds, and a band from the lowest to the highest."""
    import_matplotlib()
    from eamsim.figures.curves import accuracy_figure
    from eamsim.figures.panels import ablation_panels, read_sweeps

    figure = accuracy_figure(ablation_panels(read_sweeps(sweeps)))
    finish("fig6", figure, out, read_from(*sweeps), as_json)


@app.command()
def front(
    table: Annotated[Path, typer.Argument(metavar="FRONT.csv", help="Written by the budget search of `eamsim build`.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Accuracy against MACs saved. The trials of a budget search and their Pareto front."""
    import_matplotlib()
    from eamsim.figures.curves import front_figure
    from eamsim.jobs.search.front import read_front

    finish("front", front_figure(read_front(table)), out, read_from(table), as_json)


@app.command()
def widths(
    table: Annotated[Path, typer.Argument(metavar="Y.eam.widths.csv", help="Written by `eamsim widths`.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """What narrower datapaths do. The noise of each width alone, and the accuracy that was lost together against the cost."""
    import_matplotlib()
    from eamsim.figures.widths import widths_figure
    from eamsim.jobs.search.widths import read_trials

    finish("widths", widths_figure(read_trials(table)), out, read_from(table), as_json)


@app.command()
def designs(
    table: Annotated[Path, typer.Argument(metavar="DESIGNS.csv", help="Written by `eamsim search -o`.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """The chips of a search. Energy against latency, and those that no other beats."""
    import_matplotlib()
    from eamsim.figures.designs import designs_figure, read_designs

    finish("designs", designs_figure(read_designs(table)), out, read_from(table), as_json)


@app.command()
def table1(
    sweeps: SweepFiles,
    out: Out,
    tau: Annotated[str, typer.Option(help="Shares of frozen weights, with commas between.")] = "0.1,0.2",
    as_json: Json = False,
) -> None:
    """Table 1 of the paper. A column a model, a line a method, as Markdown and CSV."""
    from eamsim.figures import table1 as layout
    from eamsim.figures.panels import read_sweeps

    cells = layout.table1(read_sweeps(sweeps), parse_shares(tau, "--tau"))
    make_folder(out)
    files = {out / "table1.md": layout.markdown(cells), out / "table1.csv": layout.comma_separated(cells)}
    for path, text in files.items():
        try:
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise BadFile(f"{path}: cannot be written ({error.strerror}); choose another --out or free some space") from error
    publish("table1", list(files), out, read_from(*sweeps), as_json)


def import_matplotlib() -> None:
    """MissingExtra where it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra("plot", "eamsim plot") from error


def places(layers: list[int] | None, heads: list[int] | None) -> list[tuple[int, int]]:
    """(layer, head) of every map that is asked for; UserError unless there are as many of one as of the other."""
    layers, heads = layers or [], heads or []
    if len(layers) != len(heads):
        raise UserError(f"--layer and --head: expected one of each for every map, got {len(layers)} and {len(heads)}")
    return list(zip(layers, heads, strict=True))


def read_from(*files: Path) -> dict[str, Any]:
    """What a manifest says of the files that a figure shows."""
    return {"input": [described(file) for file in files]}


def finish(name: str, figure: Figure, out: Path, origin: dict[str, Any], as_json: bool) -> None:
    """Save a figure, and publish its files."""
    from eamsim.figures.style import save

    make_folder(out)
    publish(name, save(figure, out, name), out, origin, as_json)


def publish(name: str, files: list[Path], out: Path, origin: dict[str, Any], as_json: bool) -> None:
    """Write NAME.json, the manifest of the files, and print what it says."""
    packages = ("numpy",) if name == "table1" else ("numpy", "matplotlib")
    versions = {"eamsim": __version__, "python": sys.version.split()[0], **{package: version(package) for package in packages}}
    output = [described(file) for file in files]
    manifest = {"command": public_command(), "versions": versions, **origin, "output": output}
    write_manifest(out / f"{name}.json", manifest)
    emit(manifest, as_json, *(f"{file['file']}: {file['bytes']:,} bytes, sha256 {file['sha256']}" for file in output))
