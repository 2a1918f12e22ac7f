"""The program of an .eam file with all that running it needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eamsim import artifact
from eamsim.constraints import Verified
from eamsim.errors import BadFile, UserError
from eamsim.inputs.images import Preprocessing
from eamsim.inputs.labels import Labelling


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


def is_untrained(provenance: Mapping[str, Any]) -> bool:
    """Whether a model was built, or is opened, with random weights."""
    return provenance.get("random_init") is not None
