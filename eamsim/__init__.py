"""4-bit Vision Transformers with frozen attention maps, executed bit-exactly in integers.

    model = eamsim.load("x.eam")                     # model.program, model.images(...), model.labelling, model.provenance
    engine = eamsim.Engine(model.program)            # compiles once for a machine
    logits = engine.run(images)                      # uint8 [batch, height, width, 3] -> int32 [batch, classes]
    eamsim.verify(model.program, images)             # engine == golden at every tap, on every instruction set here
    eamsim.save("y.eam", program, provenance)

`reference` makes such programs of float models, `cost_model` says what they cost on a chip. `eamsim demo` shows all of it on digits.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eamsim.artifact import write as save
    from eamsim.engine import Engine
    from eamsim.jobs.agreement import verify
    from eamsim.jobs.load import read_model as load

__version__ = "0.1.0"
__all__ = ["Engine", "__version__", "load", "save", "verify"]


def face(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names are imported when asked for: name -> module.attribute."""

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(sorted(places))}")
        module, _, attribute = places[name].rpartition(".")
        return getattr(import_module(module), attribute)

    return find, lambda: sorted({*vars(import_module(package)), *places})


__getattr__, __dir__ = face(  # `eamsim --version` needs no Numba
    __name__,
    {
        "Engine": "eamsim.engine.Engine",
        "load": "eamsim.jobs.load.read_model",
        "save": "eamsim.artifact.write",
        "verify": "eamsim.jobs.agreement.verify",
    },
)
