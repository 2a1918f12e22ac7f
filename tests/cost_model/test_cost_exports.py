"""The files for SCALE-Sim and ZigZag: every product once, and the rules that their readers check."""

import json
import re
from math import prod

import pytest
import yaml
from command_line import eamsim
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from programs import FREEZES, Shape, random_program

from cost_model.exports import scalesim_csv, zigzag_yaml
from cost_model.models.architectures import ARCHITECTURES
from cost_model.models.skeleton import skeleton
from cost_model.work.counts import count
from eamsim import artifact
from eamsim.program import Attention

TINY = "deit_tiny_patch16_224"
EQUATION = r"^O(\[\w+\])+\s*\+?\s*=\s*\w(\[\w+\])+\s*[*+]\s*\w(\[(?:\w+)?\])+\s*$"  # zigzag-dse 3.9.1


def products(text: str) -> dict[str, tuple[int, ...]]:
    """M, N, K by the layer's name, as SCALE-Sim reads a line: all but what follows the last comma, at least four entries."""
    header, *lines = text.splitlines()
    assert header == "Layer,M,N,K,"
    rows = [line.split(",")[:-1] for line in lines]
    assert all(len(row) == 4 for row in rows)
    found = {name: (int(m), int(n), int(k)) for name, m, n, k in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scalesim_gets_every_multiply(name):
    program = skeleton(ARCHITECTURES[name])
    assert sum(map(prod, products(scalesim_csv(program)).values())) == count(program).macs.full


def test_scalesim_of_deit_tiny():
    found = products(scalesim_csv(skeleton(ARCHITECTURES[TINY])))
    assert len(found) == 1 + 12 * (4 + 2 * 3) + 1
    assert found["patch_embed"] == (196, 192, 768)
    assert found["block11.attn.scores.2"] == (197, 197, 64)
    assert found["block11.attn.context.2"] == (197, 64, 197)


@examples(25)
@given(st.integers(0, 2**32 - 1), st.sampled_from(FREEZES), st.sampled_from([1, 2]))
def test_zigzag_gets_every_multiply(seed, freeze, windows):
    program = random_program(Shape(seed, freeze=freeze, softmax="renormalised", windows=windows, prefix=int(windows == 1), depth=2))
    workload = yaml.safe_load(zigzag_yaml(program))
    macs = 0
    for number, layer in enumerate(workload):
        assert layer["id"] == number
        assert re.match(EQUATION, layer["equation"])
        assert {dim.lower() for dim in layer["loop_dims"]} == set(re.findall(r"\[(\w)\]", layer["equation"]))
        assert all(0 <= source <= number for source in layer["operand_source"].values())
        macs += prod(layer["loop_sizes"])
    counted, attentions = count(program).macs, [op for op in program.operations if isinstance(op, Attention)]
    scores = sum(len(op.score_heads) * op.windows * op.rows * op.tokens * op.head_dim for op in attentions)
    assert macs == counted.full - counted.scores + scores  # masks cannot be said, wholly frozen heads can


def test_zigzag_sources_follow_the_data():
    workload = {layer["name"]: layer for layer in yaml.safe_load(zigzag_yaml(skeleton(ARCHITECTURES[TINY])))}
    names = list(workload)

    def sources(name: str) -> dict[str, str]:
        return {operand: names[number] for operand, number in workload[name]["operand_source"].items()}

    assert sources("patch_embed") == {"I": "patch_embed", "W": "patch_embed"}  # itself: a constant, or the image
    assert sources("block1.attn.qkv") == {"I": "block0.mlp.fc2", "W": "block1.attn.qkv"}
    assert sources("block1.attn.scores") == {"I": "block1.attn.qkv", "W": "block1.attn.qkv"}
    assert sources("block1.attn.context") == {"I": "block1.attn.scores", "W": "block1.attn.qkv"}
    assert workload["patch_embed"]["operand_precision"] == {"I": 8, "W": 4, "O": 32, "O_final": 16}


def test_the_command_writes_both(tmp_path):
    topology, workload, model = tmp_path / "x.csv", tmp_path / "x.yaml", tmp_path / "x.eam"
    program = random_program(Shape(seed=1))
    artifact.write(str(model), program, {})
    done = eamsim("cost", model, "--scalesim", topology, "--zigzag", workload, "--json")
    assert done.code == 0, done.err
    assert topology.read_text() == scalesim_csv(program)
    assert workload.read_text() == zigzag_yaml(program)
    assert [file["sha256"] for file in json.loads(done.out)["output"]] == [artifact.sha256(topology), artifact.sha256(workload)]
    assert json.loads((tmp_path / "x.csv.json").read_text())["output"][0]["bytes"] == topology.stat().st_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scalesim", "x.txt"), "--scalesim: expected a name that ends in .csv, got x.txt"),
        (("--zigzag", "/nowhere/x.yaml"), "--zigzag: /nowhere/x.yaml cannot be written"),
    ],
)
def test_faults_are_named(options, message):
    done = eamsim("cost", TINY, *options)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
