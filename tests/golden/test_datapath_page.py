"""The worked examples of docs/spec/datapath.md, executed; and its constraint labels are those of the verifier."""

import doctest
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "spec" / "datapath.md"


def test_worked_examples():
    failed, attempted = doctest.testfile(str(PAGE), module_relative=False)
    assert attempted > 20
    assert failed == 0


def test_every_constraint_of_the_page_is_enforced():
    text, code = PAGE.read_text(), (ROOT / "eamsim" / "constraints.py").read_text()
    sections = dict(re.findall(r"### (\w+)\n(.*?)(?=\n##|\Z)", text, re.S))
    functions = dict(re.findall(r"def verify_(\w+)\(.*?\n(.*?)(?=\ndef |\Z)", code, re.S))
    enforced_by = {
        "InputQuant": ["input_quant"],
        "Gather": ["gather"],
        "Embed": ["embed"],
        "LayerNorm": ["layer_norm"],
        "Linear": ["linear", "levels", "epilogue"],
        "Attention": ["attention", "softmax_tables", "maps", "frozen", "attention_bounds"],
        "Pool": ["pool"],
    }
    assert set(sections) == set(enforced_by)
    for name, section in sections.items():
        written = set(re.findall(r"\bC\d+\b", section))
        checked = set(re.findall(r'"(C\d+)"', "".join(functions[part] for part in enforced_by[name])))
        assert written == checked, name
