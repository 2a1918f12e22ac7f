"""The documentation: it builds strictly as a book, names files that exist, and its lists are complete."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DEVELOP = (ROOT / "docs/develop.md").read_text(encoding="utf-8")
OPERATIONS = {"InputQuant", "Gather", "Embed", "LayerNorm", "Linear", "Attention", "Pool"}


def section(title: str) -> str:
    return DEVELOP.partition(f"## {title}")[2].partition("\n## ")[0]


def sources(*rooms: str) -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for room in rooms for path in (ROOT / room).rglob("*.py")}


def named(text: str, path: str) -> bool:
    """Whether a list has the file, or the folder that it lies in."""
    return any(f"`{place}`" in text for place in (path, *(f"{parent}/" for parent in Path(path).parents)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path):
    """In the present tense: `results` may name what measured them then."""
    names = re.findall(r"`((?:eamsim|reference|cost_model|tests|docs|traces)/[\w./-]*\w/?)`", page.read_text(encoding="utf-8"))
    assert [name for name in names if not (ROOT / name).exists() and not (ROOT / f"{name}.py").exists()] == []


def test_the_book_builds_strictly(tmp_path: Path):
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/spec/datapath/index.html").exists()


def tells_operations_apart(text: str) -> bool:
    """Whether a module matches on two or more kinds of operation."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.MatchClass) and isinstance(node.cls, ast.Name):
            found.add(node.cls.id)
    return len(found & OPERATIONS) > 1


def test_the_files_of_an_operation_are_all_that_tell_operations_apart():
    listed = section("An operation")
    touched = [path for path, text in sources("eamsim", "cost_model", "reference").items() if tells_operations_apart(text)]
    assert len(touched) > 10
    assert [path for path in touched if not named(listed, path)] == []


def test_the_files_of_layer_scale_are_all_that_know_it():
    listed = section("LayerScale")
    touched = [path for path, text in sources("reference").items() if re.search(r"\bLayerScale\b", text)]
    assert len(touched) == 2
    assert [path for path in touched if not named(listed, path)] == []


def test_the_files_of_a_norm_are_all_that_know_one():
    listed = section("RMSNorm")
    touched = [path for path, text in sources("reference").items() if re.search(r"\bNorm\b", text)]
    assert len(touched) > 5
    assert [path for path in touched if not named(listed, path)] == []


def test_the_files_of_the_softmax_are_all_that_say_its_widths():
    listed = section("Where the softmax gets its bits")
    touched = [path for path, text in sources("eamsim", "reference", "cost_model").items() if re.search(r"\bexp2_bits\b", text)]
    assert len(touched) > 5
    assert [path for path in touched if not named(listed, path)] == []


def test_the_files_of_an_instruction_set_are_all_that_name_one():
    listed = section("An instruction set")
    touched = [path for path, text in sources("eamsim").items() if re.search(r"\bavx512vnni\b", text)]
    assert touched
    assert [path for path in touched if not named(listed, path)] == []


def test_the_files_of_an_exporter_are_all_that_execute_one():
    listed = section("An exporter")
    touched = [path for path, text in sources("eamsim").items() if re.search(r"from eamsim\.exports import", text)]
    assert touched
    assert [path for path in touched if not named(listed, path) and not path.startswith("eamsim/exports/")] == []


def test_the_files_of_a_freezing_order_are_all_that_tell_orders_apart():
    listed = section("A freezing order")
    touched = [path for path, text in sources("reference", "eamsim").items() if re.search(r"match freezing\.order|Order = Literal", text)]
    assert touched
    assert [path for path in touched if not named(listed, path)] == []


@pytest.mark.slow
def test_the_commands_of_the_first_ten_minutes(tmp_path: Path):
    """`start.md` from the second block on; the first installs, and runs the demo."""
    pytest.importorskip("timm", reason="the extra 'reference' is not installed")
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/start.md").read_text(encoding="utf-8"), re.DOTALL)[1:]
    assert len(blocks) == 2
    functions = f'set -e; python() {{ "{sys.executable}" "$@"; }}; eamsim() {{ python -m eamsim "$@"; }}\n'
    done = subprocess.run(["bash", "-c", functions + "".join(blocks)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for said in ("frozen: ", "top-1 ", "bit-exact: ", "small-npu, batch 1", "equal: 8"):
        assert said in done.stdout


def messages(text: str) -> list[str]:
    """The strings of a module that a user may read: all but docstrings, also those of constants."""
    tree = ast.parse(text)
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [str(node.value) for node in strings if id(node) not in bare]


def test_no_message_names_a_file_that_an_installation_does_not_have():
    """Pages and checkouts: an installed wheel has neither."""
    found = {path: messages(text) for path, text in sources("eamsim", "reference", "cost_model").items()}
    assert sum(map(len, found.values())) > 1000
    unfit = re.compile(r"docs/|\w\.md\b|in the checkout|pip install (-e )?'?\.")
    own = re.compile(r"table1\.md|X\.md")  # what commands write
    assert [(path, text) for path, each in found.items() for text in each if unfit.search(text) and not own.search(text)] == []
