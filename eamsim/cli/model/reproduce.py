"""`eamsim reproduce`: the paper's protocol on ImageNet-1K, from images and weights to a figure or Table 1."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from eamsim.cli.extras import import_reference
from eamsim.cli.inputs import Compensate, FigureFolder, Labels, Weights, compensates
from eamsim.cli.manifest import described, make_folder, manifest_path, write_manifest
from eamsim.cli.output import Json, Limit, note, progress
from eamsim.cli.page import drawing
from eamsim.errors import BadFile, UserError
from eamsim.files.origin import public_command, public_name
from eamsim.inputs.datasets import LeftOut, find
from eamsim.inputs.images import ImageSet, Preprocessing, open_images
from eamsim.jobs import workers as places

if TYPE_CHECKING:
    from eamsim.jobs.sweep_table import Variant

Swept = Literal["fig5", "fig6", "table1"]
Name = Literal["fig1", "fig2", "fig3", "fig4", Swept]

CALIBRATION_SHARE = 0.05
"""Of the training images: section 4.2 of the paper."""
RANGE_IMAGES = 32
"""Of those, for the quantisers: RepQ-ViT's own choice."""
MEMORY_BYTES = 4 << 30
SWEEPS: dict[Swept, tuple[list[Variant], int]] = {
    "fig5": (["eam-fp32", "eam-4bits"], 9),
    "fig6": (["eam-4bits", "random-4bits"], 9),
    "table1": (["eam-4bits"], 2),
}
"""The variants that are evaluated, and the greatest tau in tenths."""
LAYOUT = "expected ImageNet-1K as train/CLASS/*.JPEG (1,281,167 images, 5 % of them to calibrate on) and val/CLASS/*.JPEG (50,000)"


@dataclass(frozen=True)
class Protocol:
    """Which model and images: calibration on `calib` or on 5 % of `train`, evaluation on `val`, at most `limit` images of either.

    labels: how the classes of `val` meet the model's, as `Labelling.choice`.
    """

    spec: str
    weights: str | None
    train: Path
    val: Path
    calib: list[Path]
    limit: int | None
    compensated: bool = True
    labels: str | None = None

    def check(self, name: Name) -> None:
        """BadFile names the first folder that is missing, and what belongs there; UserError for labels that nothing would use."""
        if self.labels and name not in SWEEPS:
            raise UserError(f"--labels: belongs to {', '.join(SWEEPS)}, which evaluate; leave it out of {name}")
        needed = [] if self.calib or name == "fig1" else [self.train]
        for folder in needed if name in ("fig2", "fig3", "fig4") else [*needed, self.val]:
            if not folder.is_dir():
                raise BadFile(f"--data: {folder} is missing; {LAYOUT}")

    @property
    def sources(self) -> list[Path]:
        """Where the calibration images are taken from."""
        return self.calib or [self.train]

    def calibration(self, preprocessing: Preprocessing) -> ImageSet:
        """The images whose attention maps are measured, evenly spaced over the sources."""
        note(f"looking through {', '.join(map(str, self.sources))}")
        found = sum(len(find(source, LeftOut()).items) for source in self.sources)
        wanted = found if self.calib else max(1, round(CALIBRATION_SHARE * found))
        return open_images(self.sources, preprocessing, min(wanted, self.limit or wanted))


def reproduce(
    name: Annotated[Name, typer.Argument(help="Of the paper.")],
    data: Annotated[Path, typer.Option(metavar="DIR", help="ImageNet-1K: DIR/train and DIR/val, a folder a class in each.")],
    model: Annotated[str, typer.Option(help="A timm name, local-dir:DIR or hf-hub:ID.")],
    out: FigureFolder,
    calib: Annotated[list[Path] | None, typer.Option(help="Calibrate on all of these, not on 5 % of DIR/train. May be repeated.")] = None,
    limit: Limit = None,
    labels: Labels = None,
    on: Annotated[Literal["engine", "fakequant"], typer.Option(help="What runs the 4-bit variants: integers, or torch.")] = "engine",
    weights: Weights = None,
    compensate: Compensate = None,
    workers: Annotated[int | None, typer.Option(help="Processes that evaluate; one per core unless given.", min=1)] = None,
    as_json: Json = False,
) -> None:
    """The paper's own protocol. Calibrate on 5 % of the training images, evaluate on the validation images, draw.

    The same command continues an interrupted run in the same folder.
    """
    protocol = Protocol(model, weights, data / "train", data / "val", calib or [], limit, compensates(compensate, None), labels)
    protocol.check(name)
    if name != "table1":
        drawing.import_matplotlib()
    import_reference("eamsim reproduce")
    make_folder(out)
    match name:
        case "fig1":
            drawing.fig1(model, protocol.val, out, weights=weights, as_json=as_json)
        case "fig2":
            drawing.fig2(measured(protocol, "float", out / "fig2-stats.h5"), out, as_json=as_json)
        case "fig3":
            drawing.fig3(measured(protocol, "float", out / "fig3-stats.h5"), out, as_json=as_json)
        case "fig4":
            drawing.fig4(measured(protocol, "both", out / "fig4-stats.h5"), out, as_json=as_json)
        case "fig5":
            drawing.fig5([swept(protocol, name, on, workers, out)], out, as_json=as_json)
        case "fig6":
            drawing.fig6([swept(protocol, name, on, workers, out)], out, as_json=as_json)
        case "table1":
            drawing.table1([swept(protocol, name, on, workers, out)], out, as_json=as_json)


def measured(protocol: Protocol, of: Literal["float", "both"], path: Path) -> Path:
    """The statistics of the calibration images at `path`, as `eamsim entropy` writes them, and their manifest."""
    from reference.attention.measure import measure_model
    from reference.attention.statistics_file import read_statistics
    from reference.models.load import load_model

    images = protocol.calibration(load_model(protocol.spec, protocol.weights).preprocessing)
    command = public_command()
    measure_model(
        protocol.spec,
        protocol.sources,
        path,
        progress,
        of=of,
        command=command,
        memory_bytes=MEMORY_BYTES,
        weights=protocol.weights,
        limit=len(images),
        range_images=RANGE_IMAGES,
    )
    header = read_statistics(path).header
    write_manifest(manifest_path(path), {"command": command, "images": header.images, **header.origin, "output": described(path)})
    return path


def swept(protocol: Protocol, name: Swept, on: Literal["engine", "fakequant"], workers: int | None, out: Path) -> Path:
    """The table of a figure's units, OUT/NAME-sweep.csv, as `eamsim sweep` writes it, and its manifest; OUT/units keeps finished ones."""
    from eamsim.jobs.build import labelling
    from eamsim.jobs.sweep import Choices, Subject, sweep
    from eamsim.jobs.sweep_table import write_sweep
    from reference.models.load import load_model

    model = load_model(protocol.spec, protocol.weights)
    calibration = protocol.calibration(model.preprocessing)
    data = open_images([protocol.val], model.preprocessing, protocol.limit, labelling(model, protocol.labels))
    subject = Subject(protocol.spec, model, calibration, min(RANGE_IMAGES, len(calibration)), data, protocol.compensated)
    variants, tenths = SWEEPS[name]
    taus = [tenth / 10 for tenth in range(tenths + 1)]
    choices = Choices(taus, variants, ["paper"], ["weight"], ["head"], ["entropy"], [0, 1, 2], on)
    make_folder(out / "units")
    units = choices.units(public_name(protocol.spec))
    rows = sweep(subject, units, out / "units", places.processes(workers or os.cpu_count() or 1), progress, note)
    path = out / f"{name}-sweep.csv"
    write_sweep(path, rows)
    origin = subject.origin | subject.sources
    manifest = {"command": public_command(), "models": {public_name(protocol.spec): origin}, "units": len(rows)}
    write_manifest(manifest_path(path), manifest | {"output": described(path)})
    return path
