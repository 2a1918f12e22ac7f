"""How the classes of data meet those of a model: by name, by order, or by a file that says it (docs/guide/data.md)."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eamsim.errors import BadFile, UserError
from eamsim.files.limits import TEXT_BYTES
from eamsim.files.reading import read_text
from eamsim.inputs.datasets import ImageSource, composed

BY_NAME, BY_ORDER = "by-name", "by-order"
HELP = "How the data's classes meet the model's: by-name, by-order, or a file of names in the model's order. [default: by name]"


@dataclass(frozen=True)
class Labelling:
    """The classes of a model, and how those of data are found among them.

    classes: their number; names: one for each, or None; descriptions: of these names, each of which
    may list more names with commas between, as ImageNet's do; choice: by-name, by-order, the
    path of a file, or None for what can be said without a guess; required: whether data without such labels is refused.
    """

    classes: int
    names: Sequence[str] | None
    descriptions: Mapping[str, str] | None = None
    choice: str | None = None
    required: bool = True

    def match(self, source: ImageSource) -> tuple[np.ndarray, str]:
        """int64, the model's class of each of the source's classes (-1: of none, which only by-name allows), and how it was found.

        For a source of numbers alone, of each number. UserError says which class is not found, and which option decides.
        """
        if source.numbers is None:
            raise UserError(f"{source.name}: expected labelled images (a folder for each class, or an .npz with labels), got images alone")
        if source.classes is None:
            return self._by_number(source.name, source.numbers), "by-number"
        used = sorted({source.classes[number] for number in np.unique(source.numbers)})
        names = self._table()
        if self.choice == BY_ORDER or (self.choice is None and names is None):
            return self._by_order(source), BY_ORDER
        if self._file is None and _same(source.classes, self.names):
            return np.arange(self.classes), BY_NAME
        if names is None:
            raise UserError(f"--labels {BY_NAME}: the model has no label names; give a file of them, in the model's order")
        return self._by_name(source, used, names), BY_NAME if self._file is None else f"by {self._file.name}"

    def _by_number(self, name: str, numbers: np.ndarray) -> np.ndarray:
        if self.choice not in (None, BY_ORDER):
            raise UserError(f"{name}: its labels are numbers without 'classes', so --labels {self.choice} finds no names; leave it out")
        if len(numbers) and numbers.max() >= self.classes:
            raise UserError(
                f"{name}: expected labels below the model's {self.classes} classes, got {numbers.max()}; take data of the model's classes"
            )
        return np.arange(self.classes)

    def _by_order(self, source: ImageSource) -> np.ndarray:
        assert source.classes is not None
        if len(source.classes) != self.classes:
            why = "" if self.choice else "; the model has no label names"
            raise UserError(
                f"{source.name}: expected the model's {self.classes} classes, got {len(source.classes)}: {_some(source.classes)}{why}; "
                "say which they are with --labels FILE, names in the model's order"
            )
        return np.arange(self.classes)

    def _by_name(self, source: ImageSource, used: Sequence[str], names: Mapping[str, set[int]]) -> np.ndarray:
        classes = source.classes or ()
        for name in used:
            if classes.count(name) > 1:
                raise BadFile(f"{source.name}: two of its classes are called {name!r}; rename one, or give --labels {BY_ORDER}")
            if len(names.get(name, ())) > 1:
                raise UserError(
                    f"{source.name}: class {name!r} is the name of {len(names[name])} of the model's classes "
                    f"({', '.join(map(str, sorted(names[name])))}); rename it, or say which is meant with --labels FILE"
                )
        unknown = [name for name in used if name not in names]
        if unknown and (len(unknown) == len(used) or self.choice != BY_NAME):
            raise UserError(self._not_found(source.name, unknown, len(used), names))
        return np.array([next(iter(names[name])) if len(names.get(name, ())) == 1 else -1 for name in classes])

    def _not_found(self, name: str, unknown: Sequence[str], used: int, names: Mapping[str, set[int]]) -> str:
        close = difflib.get_close_matches(unknown[0].casefold(), {each.casefold(): each for each in names}, n=1)
        hint = next((f" (did you mean {each!r}?)" for each in names if close and each.casefold() == close[0]), "")
        known = f"the model's {self.classes} labels" if self._file is None else f"the names in {self._file}"
        more = f" and {len(unknown) - 1} others of {used} are" if len(unknown) > 1 else " is"
        leave = "" if len(unknown) == used else f"leave such images out with --labels {BY_NAME}, "
        return (
            f"{name}: class {unknown[0]!r}{hint}{more} not among {known}: {_some(names)}; "
            f"{leave}pair by position with --labels {BY_ORDER}, or give --labels FILE, names in the model's order"
        )

    @property
    def _file(self) -> Path | None:
        return None if self.choice in (None, BY_NAME, BY_ORDER) else Path(str(self.choice))

    def _table(self) -> dict[str, set[int]] | None:
        """The model's classes by name; a synonym counts where it is no label."""
        if self._file is not None:
            return _lookup(read_names(self._file, self.classes))
        if self.names is None:
            return None
        descriptions = enumerate((self.descriptions or {}).get(label, "") for label in self.names)
        synonyms = _lookup((name.strip(), index) for index, text in descriptions for name in {text, *text.split(",")} if name)
        return synonyms | _lookup((name, index) for index, name in enumerate(self.names))


def _lookup(pairs: Iterable[tuple[str, int]]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name, index in pairs:
        found.setdefault(composed(name), set()).add(index)
    return found


def _same(classes: Sequence[str], names: Sequence[str] | None) -> bool:
    """Whether the data lists the model's own labels in their order, so that even two of one name are told apart."""
    return names is not None and list(classes) == [composed(name) for name in names]


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")


def matched(found: Sequence[ImageSource], labelling: Labelling | None) -> tuple[np.ndarray | None, dict[str, Any]]:
    """int64 [images], the model's class of every image of all sources (-1: of none), or None; and how they were found, for a summary.

    Raises what `Labelling.match` raises, unless labels are not required and nobody chose how to find them.
    """
    if labelling is None:
        return None, {"how": "not needed"}
    try:
        parts = [(source.numbers, *labelling.match(source)) for source in found]
    except UserError as error:
        if labelling.required or labelling.choice:
            raise
        return None, {"how": f"none, since {_without_folders(str(error), found)}"}
    labels = np.concatenate([classes[numbers] for numbers, classes, _ in parts if numbers is not None])
    counted = {"classes": len(np.unique(labels[labels >= 0])), "model_classes": labelling.classes}
    return labels, {"how": ", ".join(dict.fromkeys(how for *_, how in parts)), **counted}


def _without_folders(text: str, found: Sequence[ImageSource]) -> str:
    """Whoever is given the file reads no paths of the machine that wrote it."""
    for source in found:
        text = text.replace(source.name, Path(source.name).name)
    return text


def read_names(path: Path, classes: int) -> list[tuple[str, int]]:
    """Names and the model's class of each, of a text file with a name a line, or of JSON.

    JSON: a list of names in the model's order, or of lists of names for each class; {"0": name or names}; or {name: 0}.
    Raises BadFile for anything else, and for a class beyond the model's `classes`.
    """
    try:
        text = read_text(path, TEXT_BYTES).removeprefix("\ufeff")
        tree = json.loads(text) if path.suffix.lower() == ".json" else text.rstrip().splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"{path}: not a readable file of class names ({error}); --labels takes by-name, by-order or such a file") from error
    pairs = [(name, index) for index, names in _numbered(path, tree) for name in (names if isinstance(names, list) else [names])]
    if not pairs or not all(isinstance(name, str) and type(index) is int for name, index in pairs):
        raise BadFile(f"{path}: expected names of classes: a line for each, or JSON [name, ...], {{index: name}} or {{name: index}}")
    beyond = next((index for _, index in pairs if not 0 <= index < classes), None)
    listed = len(tree) if isinstance(tree, list) else classes
    if beyond is not None or listed != classes:
        raise BadFile(f"{path}: expected names of the model's {classes} classes, got {listed if beyond is None else f'class {beyond}'}")
    return pairs


def _numbered(path: Path, tree: Any) -> Iterable[tuple[Any, Any]]:
    """Pairs of a class and its name or names."""
    try:
        if isinstance(tree, list):
            return list(enumerate(tree))
        if all(type(index) is int for index in tree.values()):
            return [(index, name) for name, index in tree.items()]
        return [(int(index), names) for index, names in tree.items()]
    except (AttributeError, ValueError):
        raise BadFile(f"{path}: expected JSON [name, ...], {{index: name}} or {{name: index}}, got something else") from None
