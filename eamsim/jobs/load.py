"""The program of an .eam file with all that running it needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from eamsim import artifact
from eamsim.constraints import Verified
from eamsim.errors import BadFile, UserError
from eamsim.inputs.images import ImageSet, Preprocessing, open_images
from eamsim.inputs.labels import Labelling


class Loaded(NamedTuple):
    """A proved program, how its images are prepared, what its classes are called, and where it comes from."""

    program: Verified
    preprocessing: Preprocessing
    labelling: Labelling
    provenance: dict[str, Any]

    def images(self, *sources: str | Path, limit: int | None = None, labelled: bool = False) -> ImageSet:
        """Image files, folders and .npz files as the program takes them; labelled: with the class of each. UserError, BadFile."""
        return open_images([Path(source) for source in sources], self.preprocessing, limit, self.labelling if labelled else None)


def read_model(path: str | Path) -> Loaded:
    """The model of an .eam file; BadFile if any of it is unusable."""
    program, provenance = artifact.read(path)
    try:
        preprocessing = Preprocessing(**provenance["preprocessing"])
        labels, descriptions = provenance["labels"], provenance.get("label_descriptions")
    except (KeyError, TypeError) as error:
        raise BadFile(f"{path}: its provenance lacks what a model needs ({error}); build the model again") from error
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
    return Loaded(program, preprocessing, Labelling(program.output.size, labels, descriptions), provenance)


def is_untrained(provenance: Mapping[str, Any]) -> bool:
    """Whether a model was built, or is opened, with random weights."""
    return provenance.get("random_init") is not None
