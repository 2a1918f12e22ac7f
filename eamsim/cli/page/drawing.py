"""The paper's figures and its Table 1, drawn, saved with their manifest and told: for `eamsim plot` and `eamsim reproduce`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eamsim.cli.extras import import_reference
from eamsim.cli.manifest import described, file_line, made_by, make_folder, write_manifest
from eamsim.cli.output import emit, progress
from eamsim.errors import MissingExtra, UserError
from eamsim.files.container import written
from eamsim.files.table import csv_text
from eamsim.inputs.images import open_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Source = Literal["float", "quantised"]


def fig1(
    model: str,
    image: Path,
    out: Path,
    index: int = 0,
    layer: int = -1,
    calib: list[Path] | None = None,
    calib_images: int = 32,
    weights: str | None = None,
    as_json: bool = False,
) -> None:
    """Attention over an image, of the float model and, with calibration images, of the quantised one."""
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


def fig2(statistics: Path, out: Path, of: Source | None = None, heads: int = 6, as_json: bool = False) -> None:
    """Entropy of the first heads."""
    import_matplotlib()
    from eamsim.figures.maps import class_entropy
    from reference.attention.statistics_file import read_statistics

    found = read_statistics(statistics)
    figure = class_entropy(found, of or found.header.sources[0], heads)
    finish("fig2", figure, out, read_from(statistics), as_json)


def fig3(
    statistics: Path,
    out: Path,
    of: Source | None = None,
    layer: list[int] | None = None,
    head: list[int] | None = None,
    as_json: bool = False,
) -> None:
    """Full entropy maps of some heads."""
    import_matplotlib()
    from eamsim.figures.maps import full_entropy
    from reference.attention.statistics_file import read_statistics

    found = read_statistics(statistics)
    figure = full_entropy(found, of or found.header.sources[0], places(layer, head))
    finish("fig3", figure, out, read_from(statistics), as_json)


def fig4(statistics: Path, out: Path, layer: list[int] | None = None, head: list[int] | None = None, as_json: bool = False) -> None:
    """Divergence of the quantised model."""
    import_matplotlib()
    from eamsim.figures.maps import divergence
    from reference.attention.statistics_file import read_statistics

    figure = divergence(read_statistics(statistics), places(layer, head))
    finish("fig4", figure, out, read_from(statistics), as_json)


def fig5(sweeps: list[Path], out: Path, as_json: bool = False) -> None:
    """Accuracy against tau."""
    import_matplotlib()
    from eamsim.figures.curves import accuracy_figure
    from eamsim.figures.panels import accuracy_panels, read_sweeps

    figure = accuracy_figure(accuracy_panels(read_sweeps(sweeps)))
    finish("fig5", figure, out, read_from(*sweeps), as_json)


def fig6(sweeps: list[Path], out: Path, as_json: bool = False) -> None:
    """EAM against random fixing."""
    import_matplotlib()
    from eamsim.figures.curves import accuracy_figure
    from eamsim.figures.panels import ablation_panels, read_sweeps

    figure = accuracy_figure(ablation_panels(read_sweeps(sweeps)))
    finish("fig6", figure, out, read_from(*sweeps), as_json)


def table1(sweeps: list[Path], out: Path, taus: Sequence[float] = (0.1, 0.2), as_json: bool = False) -> None:
    """Table 1 of the paper, as Markdown and CSV."""
    from eamsim.figures import table1 as layout
    from eamsim.figures.panels import read_sweeps

    cells = layout.table1(read_sweeps(sweeps), taus)
    make_folder(out)
    files = {out / "table1.md": layout.markdown(cells), out / "table1.csv": csv_text(cells)}
    for path, text in files.items():
        with written(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
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
    output = [described(file) for file in files]
    manifest = {**made_by(*packages), **origin, "output": output}
    write_manifest(out / f"{name}.json", manifest)
    emit(manifest, as_json, *map(file_line, output))
