"""`eamsim run`: classify images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from eamsim import artifact
from eamsim.cli.output import Json, Threads, progress
from eamsim.cli.untrained import emit_measured, is_untrained
from eamsim.errors import BadFile, UserError
from eamsim.images import Preprocessing, open_images
from eamsim.labels import Labelling
from eamsim.verify import Verified

if TYPE_CHECKING:
    from eamsim.engine import Engine

ModelFile = Annotated[Path, typer.Argument(metavar="X.eam", help="A model built by `eamsim build`.")]
Isa = Annotated[str | None, typer.Option(help="Instruction set of the engine (see `eamsim doctor`); the best unless given.")]


def run(
    model: ModelFile,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files, folders of images, .npz files.")],
    top: Annotated[int, typer.Option(help="Classes to print for each image.", min=1)] = 5,
    threads: Threads = None,
    isa: Isa = None,
    as_json: Json = False,
) -> None:
    """Classify images. Prints the highest logits of each; ties go to the lower class."""
    program, preprocessing, labelling, provenance = read_model(model)
    image_set = open_images(images, preprocessing)
    engine = load_engine(program, threads, isa)
    del program  # whose weights the engine has packed
    logits = np.concatenate([engine.run(batch) for batch in image_set.batches(32)])
    best = np.argsort(-logits.astype(np.int64), axis=1, kind="stable")[:, :top]
    results = [
        {
            "image": name,
            "classes": [{"class": int(c), "label": labelling.names[c] if labelling.names else None, "logit": int(row[c])} for c in order],
        }
        for name, row, order in zip(image_set.names, logits, best, strict=True)
    ]
    result = {"results": results, "data": image_set.summary.json()}
    emit_measured(is_untrained(provenance), result, as_json, *(_line(each) for each in results))


def _line(result: dict) -> str:
    classes = (f"{entry['label'] or entry['class']} ({entry['logit']})" for entry in result["classes"])
    return f"{result['image']}: {', '.join(classes)}"


def load_engine(program: Verified, threads: int | None, isa: str | None) -> Engine:
    """`eamsim.engine.load`, imported late as Numba takes its time, which shows a first compilation."""
    from eamsim import engine

    return engine.load(program, threads=threads, isa=isa, progress=progress)


def read_model(path: Path) -> tuple[Verified, Preprocessing, Labelling, dict[str, Any]]:
    """The program of an .eam file, how its images are prepared, what its classes are called, and its provenance.

    BadFile if any of it is unusable.
    """
    program, provenance = artifact.read(path)
    try:
        preprocessing = Preprocessing(**provenance["preprocessing"])
        labels, descriptions = provenance["labels"], provenance.get("label_descriptions")
    except (KeyError, TypeError) as error:
        raise BadFile(f"{path}: its provenance lacks {error}; build the model again") from error
    except UserError as error:
        raise BadFile(f"{path}: {error}; build the model again") from error
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise BadFile(f"{path}: expected a list of texts as labels in its provenance, got {labels!r:.80}; build the model again")
    if descriptions is not None and not (isinstance(descriptions, dict) and all(isinstance(text, str) for text in descriptions.values())):
        raise BadFile(f"{path}: expected texts by label as label_descriptions in its provenance, got {descriptions!r:.80}; build it again")
    height, width, _ = program.image.shape
    if (preprocessing.height, preprocessing.width) != (height, width):
        raise BadFile(
            f"{path}: its preprocessing gives {preprocessing.height} x {preprocessing.width} images, its program takes {height} x {width}"
        )
    if labels is not None and len(labels) != program.output.size:
        raise BadFile(f"{path}: expected {program.output.size} labels, got {len(labels)}")
    return program, preprocessing, Labelling(program.output.size, labels, descriptions), provenance
