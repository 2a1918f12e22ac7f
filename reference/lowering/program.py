"""A calibrated network as an integer program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, assert_never, get_args

from eamsim.arguments import expect_choice, expect_type
from eamsim.constraints import Verified, verify
from eamsim.errors import UserError
from eamsim.program import Program, Softmax, Value
from eamsim.unread import without_unread_rows
from reference.attention.freeze import FrozenMap
from reference.lowering.frozen import with_frozen
from reference.lowering.layers import DEFAULTS, Lowering, LoweringConfig
from reference.lowering.swin import swin_operations
from reference.lowering.vit import vit_operations
from reference.models.swin import Swin
from reference.models.vit import Vit
from reference.quantisation.levels import Grid, Levels
from reference.quantisation.repq import Calibrated

LEAST_EXPONENT = -24  # of values that are always 0
LEAST_STEPS = 4  # of the residual stream in a typical value: trained models have 60 and more


def lower(
    calibrated: Calibrated,
    frozen: Sequence[FrozenMap] | None = None,
    softmax: Softmax = "paper",
    config: LoweringConfig = DEFAULTS,
) -> Verified:
    """The integer program of a model calibrated in `hardware` mode, one frozen map per block where there are any.

    Frozen means become codes of the block's own attention grid. Under `renormalised` a wholly frozen head loses its q and k
    columns. Rows that nothing reads are left out unless `config.keep_unread`, or unless they come before those that are read. Raises
    UserError for a model calibrated `published`, for maps of another, and where a constant does not fit its width.
    """
    expect_type("calibrated", calibrated, Calibrated)
    expect_choice("softmax", softmax, get_args(Softmax))
    expect_type("config", config, LoweringConfig)
    if calibrated.mode != "hardware":
        raise UserError("lowering needs a model calibrated in 'hardware' mode; the published grid has 17 levels and fractional zero points")
    lowering = Lowering(calibrated, config, softmax, _stream_exponents(calibrated, config))
    preprocessing, network = calibrated.model.preprocessing, calibrated.network
    image = Value("image", (preprocessing.height, preprocessing.width, 3), 8)
    match network:
        case Vit():
            operations = vit_operations(lowering, network, image)
        case Swin():
            operations = swin_operations(lowering, network, image)
        case _:
            assert_never(network)
    program = Program(calibrated.model.name, image, tuple(operations), config.datapath)
    first = network.read.start in (None, 0)  # frozen maps of a block with fewer rows are those of its first
    dense = without_unread_rows(verify(program)) if first and not config.keep_unread else verify(program)
    return dense if frozen is None else with_frozen(dense, frozen, calibrated.attention)


def provenance(calibrated: Calibrated, config: LoweringConfig = DEFAULTS) -> dict[str, Any]:
    """Where a program comes from, for people and for the preparation of images, as JSON values; no interpreter reads it."""
    expect_type("calibrated", calibrated, Calibrated)
    expect_type("config", config, LoweringConfig)
    model = calibrated.model
    scales = {name: _stored(quantiser) for name, quantiser in calibrated.activations.items()}
    return {
        "model": model.name,
        "preprocessing": asdict(model.preprocessing),
        "mean": list(model.mean),
        "std": list(model.std),
        "labels": None if model.label_names is None else list(model.label_names),
        "label_descriptions": None if model.label_descriptions is None else dict(model.label_descriptions),
        "config": dict(model.config),
        "remarks": [*model.remarks, *stream_remarks(calibrated, config)],
        "calibration": {"method": "RepQ-ViT", "mode": calibrated.mode, "images": calibrated.images},
        "compensation": calibrated.compensation,
        "lowering": asdict(config),
        "activations": scales,
        "attention": [asdict(quantiser) for quantiser in calibrated.attention],
        "stream_log2_scales": _stream_exponents(calibrated, config),
    }


def _stored(grid: Grid) -> dict[str, Any]:
    """What `reference.crosscheck.rebuild` makes the quantiser of again."""
    numbers = {"levels": [int(level) for level in grid.levels]} if isinstance(grid, Levels) else {"zero": int(grid.zero)}
    return {"scale": grid.scale.item(), **numbers, "bits": grid.bits}


def stream_remarks(calibrated: Calibrated, config: LoweringConfig = DEFAULTS) -> tuple[str, ...]:
    """The signed value whose smallest token suffers most where values far larger set its scale, if that token is all but lost."""
    exponents = _stream_exponents(calibrated, config)
    steps = {name: least / 2.0 ** exponents[name] for name, least in calibrated.stream_least.items() if least}
    worst = min(steps, key=steps.__getitem__, default="")
    if not worst or steps[worst] >= LEAST_STEPS:
        return ()
    name = "embed" if worst == "patch_embed" and isinstance(calibrated.network, Vit) else worst  # whose scale it has
    return (
        f"{worst}: {config.residual_bits} bits hold values up to {calibrated.stream_max[name]:.3g}, the largest seen, in steps of which a"
        f" typical value of some token is {steps[worst]:.2g}: the program loses what is in it; look for a weight that is far too large",
    )


def _stream_exponents(calibrated: Calibrated, config: LoweringConfig) -> dict[str, int]:
    """log2 of the scale of every signed value: large enough for `headroom` times its calibrated maximum, never below its operand's."""
    largest, network = dict(calibrated.stream_max), calibrated.network
    if isinstance(network, Vit):  # Embed adds in one scale
        largest["patch_embed"] = largest["embed"] = max(largest["patch_embed"], largest["embed"])
    limit = (1 << (config.residual_bits - 1)) - 1
    residuals, exponents = network.residuals, {}
    for name, maximum in largest.items():
        operand = exponents[residuals[name]] if name in residuals else LEAST_EXPONENT
        needed = math.ceil(math.log2(config.headroom * maximum / limit)) if maximum > 0 else operand
        exponents[name] = max(operand, needed)
    return exponents | {name: exponents[source] for name, source in network.moved.items()}
