"""`eamsim run`: classify images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from eamsim.cli.inputs import Isa, ModelFile, load_engine
from eamsim.cli.output import Json, Threads
from eamsim.cli.untrained import emit_measured
from eamsim.inputs.images import open_images
from eamsim.jobs.load import is_untrained, read_model


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
