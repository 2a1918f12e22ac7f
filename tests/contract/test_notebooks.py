"""The notebooks of the documentation run from the first cell to the last, and say what they say they say."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra 'docs' is not installed")
nbclient = pytest.importorskip("nbclient", reason="the extra 'docs' is not installed")
pytest.importorskip("timm", reason="the extra 'reference' is not installed")

NOTEBOOKS = Path(__file__).parents[2] / "docs/notebooks"
SAID = {
    "designer": ("multiply-accumulates", "pays from batch", "bytes of SRAM"),
    "researcher": ("block0.attn", "22.3% frozen", "(True, ", "of the logits change"),
    "verification": ("block0", "True", "NOT equal", "block0.attn.proj[3, 7]"),
}


def test_there_is_one_for_each_kind_of_reader():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == SAID.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", SAID)
@pytest.mark.filterwarnings("default")  # of Jupyter's own parts
def test_a_notebook_runs(name: str, tmp_path: Path):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)
    assert [words for words in SAID[name] if words not in text] == []
