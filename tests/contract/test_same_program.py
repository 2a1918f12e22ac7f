"""A program does not depend on the processor that builds it: torch is told to do without what this one can."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

DIGITS = Path(__file__).parents[2] / "eamsim/data/digits"
SWIN = {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "num_classes": 5}
OLDEST = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}
SETTINGS = ({"OMP_NUM_THREADS": "2"}, OLDEST)


def build(out: Path, settings: dict[str, str], *options: object) -> bytes:
    calib = ("--calib", DIGITS / "digits_calib.npz", "--limit", 256, "--tau", 0.3, "--softmax", "renormalised")
    command = [sys.executable, "-m", "eamsim", "build", *options, *calib, "-o", out]
    subprocess.run(list(map(str, command)), env=os.environ | settings, check=True, capture_output=True)
    return out.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--no-compensate",), ("--codes", "fitted")], ids=["as calibrated", "compensated, fitted"])
def test_a_trained_vit_becomes_the_same_program(tmp_path, options):
    one, other = (build(tmp_path / f"{i}.eam", settings, f"local-dir:{DIGITS}", *options) for i, settings in enumerate(SETTINGS))
    assert one == other


@pytest.mark.slow
def test_an_untrained_swin_becomes_the_same_program(tmp_path):
    preprocessing = {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.25] * 3, "num_classes": 5}
    config = {"architecture": "swin_tiny_patch4_window7_224", "num_classes": 5, "model_args": SWIN, "pretrained_cfg": preprocessing}
    (tmp_path / "config.json").write_text(json.dumps(config))
    choice = (f"local-dir:{tmp_path}", "--random-init", 0, "--compensate", "--order", "output")
    one, other = (build(tmp_path / f"{i}.eam", settings, *choice) for i, settings in enumerate(SETTINGS))
    assert one == other
