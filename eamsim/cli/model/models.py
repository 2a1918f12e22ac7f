"""`eamsim models`: which features of timm's models are supported, by the table that refuses the others."""

from eamsim.cli.extras import import_reference
from eamsim.cli.output import Json, emit, table

MARKS = {True: "✓", False: "-", None: ""}


def models(as_json: Json = False) -> None:
    """What of timm's models is supported. A tick for each feature of a ViT or DeiT and of a Swin, `-` where it is refused by this name."""
    import_reference("eamsim models")
    from reference.models.features import FEATURES, KINDS

    result = [{"feature": feature.name, **{kind: feature.supported.get(kind) for kind in KINDS}} for feature in FEATURES]
    rows = [[row["feature"], *(MARKS[row[kind]] for kind in KINDS)] for row in result]
    emit({"features": result}, as_json, table(["feature", *KINDS], rows))
