"""`eamsim hardware`: presets of an installed package are listed, shown, and copied to be changed."""

import json

import pytest
import yaml
from command_line import eamsim

from cost_model.chip.hardware import PRESETS, load, preset_names


def test_every_preset_is_listed_in_its_own_words():
    listed = json.loads(eamsim("hardware", "list", "--json").out)["presets"]
    assert [each["name"] for each in listed] == preset_names()
    assert {each["name"]: each["description"] for each in listed} == {name: load(name).description for name in preset_names()}
    assert all(name in eamsim("hardware", "list").out for name in preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_what_is_shown_and_copied_is_the_file_that_ships(name, tmp_path):
    text = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    assert eamsim("hardware", "show", name).out == text
    assert json.loads(eamsim("hardware", "show", name, "--json").out)["name"] == yaml.safe_load(text)["name"]

    copied = tmp_path / "mine.yaml"
    result = json.loads(eamsim("hardware", "copy", name, copied, "--json").out)
    assert result["output"]["file"] == str(copied)
    assert copied.read_text(encoding="utf-8") == text
    assert load(str(copied)) == load(name)


def test_a_copy_replaces_nothing(tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    for arguments, message in (
        (("small-npu", tmp_path / "mine.yaml"), f"copy: {tmp_path}/mine.yaml exists; choose a new file"),
        (("small-npu", tmp_path / "mine.txt"), f"copy: expected a name that ends in .yaml, got {tmp_path}/mine.txt"),
        (("tpu", tmp_path / "new.yaml"), "preset: expected one of large-npu, simd-mcu, small-npu, got 'tpu'"),
    ):
        finished = eamsim("hardware", "copy", *arguments)
        assert (finished.code, finished.err.strip()) == (2, f"error: {message}")
    assert (tmp_path / "mine.yaml").read_text() == "mine"
