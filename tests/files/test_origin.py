"""No file tells where on which machine it was made."""

import json
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from eamsim.files.origin import public_name, public_names, without_folders

DIGITS = Path(str(files("eamsim") / "data" / "digits"))


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("/home/bob/calib.npz", "calib.npz"),
        ("../shared/data/", "data"),
        ("local-dir:/home/bob/MODEL", "local-dir:MODEL"),
        ("--calib=/home/bob/calib.npz", "--calib=calib.npz"),
        ("--weights=local-dir:/home/bob/MODEL", "--weights=local-dir:MODEL"),
        ("hf-hub:timm/vit_tiny", "hf-hub:timm/vit_tiny"),
        ("--weights=hf-hub:timm/vit_tiny", "--weights=hf-hub:timm/vit_tiny"),
        ("deit_tiny_patch16_224", "deit_tiny_patch16_224"),
        ("..", ".."),
        ("./", "./"),
        ("/", "/"),
    ],
)
def test_an_argument_keeps_its_last_part(argument, expected):
    assert public_name(argument) == expected


def test_images_are_named_from_their_source_on():
    names = ("/home/bob/data/ant/1.png", "/home/bob/data/bee/1.png", "/home/bob/x.npz[3]")

    assert public_names(names, [Path("/home/bob/data"), Path("/home/bob/x.npz")]) == ("data/ant/1.png", "data/bee/1.png", "x.npz[3]")


def test_files_in_a_manifest_have_no_folders():
    assert without_folders({"output": [{"file": "/home/bob/a.eam", "bytes": 3}], "reason": "1/2"}) == {
        "output": [{"file": "a.eam", "bytes": 3}],
        "reason": "1/2",
    }


@pytest.mark.slow
def test_two_users_in_two_folders_make_the_same_bytes(tmp_path):
    pytest.importorskip("timm", reason="needs the extra 'reference'")
    script = (
        "import sys; from eamsim.cli import main; folder = sys.argv[1]\n"
        "for name, out in (('build', 'x.eam'), ('entropy', 'x.h5')):\n"
        "    sys.argv = ['eamsim', name, f'local-dir:{folder}/model', f'--calib={folder}/calib.npz', '--limit', '24',\n"
        "        '--calib-images', '8', '-o', f'{folder}/{out}']\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert not stop.code, stop\n"
    )
    for user in ("alice", "bob"):
        home = tmp_path / user / "work"
        shutil.copytree(DIGITS, home / "model")
        shutil.copy(DIGITS / "digits_calib.npz", home / "calib.npz")
        environment = os.environ | {"HOME": str(home.parent), "USER": user, "LOGNAME": user, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", script, home], check=True, env=environment, cwd=home)
    for name in ("x.eam", "x.eam.json", "x.h5", "x.h5.json"):
        mine, yours = ((tmp_path / user / "work" / name).read_bytes() for user in ("alice", "bob"))
        assert mine == yours, name
        assert str(tmp_path).encode() not in mine, name
    assert json.loads((tmp_path / "bob/work/x.eam.json").read_text())["command"].startswith(
        "eamsim build local-dir:model --calib=calib.npz"
    )
