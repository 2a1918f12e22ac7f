"""A folder of ImageNet's 1,000 wnids from images to top-1, on a model of 1,000 classes that names none of them itself."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import eamsim
from PIL import Image

pytest.importorskip("timm", reason="needs the extra 'reference'")

from local_models import save_model
from timm.data.imagenet_info import ImageNetInfo

from eamsim import engine
from eamsim.inputs.images import open_images
from eamsim.jobs.load import read_model
from eamsim.jobs.stages import Judges, hits
from reference.models.load import load_model

CLASSES, IMAGES = 1000, 1200


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The model, its program, random images, what the program answers to each, and the wnids in the order of ImageNet's classes."""
    root = tmp_path_factory.mktemp("imagenet")
    args = {"num_classes": CLASSES, "embed_dim": 12, "depth": 1, "num_heads": 1}
    save_model(root / "model", args=args, cfg={"tag": "random_in1k"})
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 16, 16, 3), np.uint8)
    np.savez(root / "calib.npz", images=images[:8])
    built = eamsim("build", f"local-dir:{root / 'model'}", "--calib", root / "calib.npz", "--tau", 0, "-o", root / "m.eam")
    assert built.code == 0, built.err
    program, preprocessing, *_ = read_model(root / "m.eam")
    run = engine.Engine(program, 1).run
    answers = run(images).argmax(axis=1)
    wnids = ImageNetInfo("imagenet-1k").label_names()
    assert (wnids[0], wnids[217], wnids[999]) == ("n01440764", "n02102040", "n15075141")  # tench, English springer, toilet tissue
    return SimpleNamespace(root=root, images=images, run=run, answers=answers, wnids=wnids, preprocessing=preprocessing)


def folder(made: SimpleNamespace, path: Path, labels: np.ndarray) -> Path:
    """The images as PNG files in a folder for each wnid of `labels`."""
    for index, label in enumerate(labels):
        (path / made.wnids[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(made.images[index]).save(path / made.wnids[label] / f"{index:04}.png")
    return path


def evaluated(made: SimpleNamespace, data: Path) -> tuple[float, dict]:
    done = eamsim("eval", made.root / "m.eam", "--data", data, "--threads", 1, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    return found["top1"], found["data"]["labels"]


def test_all_classes_have_their_index(made, tmp_path):
    labels = np.concatenate([np.arange(CLASSES), made.answers[CLASSES:]])  # each class once; then what is answered right
    data = folder(made, tmp_path / "all", labels)
    top1, met = evaluated(made, data)
    assert top1 == (made.answers == labels).mean()
    assert top1 >= (IMAGES - CLASSES) / IMAGES
    assert met == {"how": "by-name", "classes": CLASSES, "model_classes": CLASSES}
    _, _, labelling, _ = read_model(made.root / "m.eam")
    opened = open_images([data], made.preprocessing, labelling=labelling)
    numbers = [int(Path(name).stem) for name in opened.names]
    np.testing.assert_array_equal(opened.labels, labels[numbers])


def test_a_subset_of_the_classes_keeps_their_index(made, tmp_path):
    chosen = np.unique(made.answers)
    assert len(chosen) > 3
    data = folder(made, tmp_path / "some", made.answers)
    assert evaluated(made, data) == (1.0, {"how": "by-name", "classes": len(chosen), "model_classes": CLASSES})
    judges = Judges(load_model(f"local-dir:{made.root / 'model'}"), [data], None, "by-name")
    assert hits(made.run, judges.all[0]).all()  # the table of stages, by the same labels
