"""Tuning: what it learns, keeps and promises, on a small ViT and a small Swin."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import eamsim
from local_models import ARCHITECTURES, save_model
from numpy.testing import assert_array_equal

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from eamsim import engine  # noqa: E402
from eamsim.errors import UserError  # noqa: E402
from eamsim.inputs.images import open_images  # noqa: E402
from eamsim.program import Attention, Softmax  # noqa: E402
from eamsim.progress import unheard  # noqa: E402
from reference.attention.freeze import FrozenMap  # noqa: E402
from reference.lowering.program import lower  # noqa: E402
from reference.models.load import as_model, load_model  # noqa: E402
from reference.quantisation.fakequant import predict, quantise_frozen  # noqa: E402
from reference.quantisation.precision import Precision  # noqa: E402
from reference.quantisation.repq import calibrate  # noqa: E402
from reference.tuning import tune as subject  # noqa: E402
from reference.tuning.crops import random_crops  # noqa: E402
from reference.tuning.student import Student  # noqa: E402
from reference.tuning.tune import Lessons  # noqa: E402

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "eamsim" / "data" / "digits"
STEPS, CROPS, PART = 4, 8, 4
"""A quarter of the crops of a real step, still in two parts."""


@pytest.fixture(scope="module", autouse=True)
def small_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "CROPS", CROPS)
        patch.setattr(subject, "PART", PART)
        yield


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the killed process has: tests before these, of two threads and Numba's, leave another number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["vit", "swin"])
def model(request):
    architecture, arguments = ARCHITECTURES[request.param]
    torch.manual_seed(0)
    module = timm.create_model(architecture, **arguments)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return as_model(module.eval(), "small")


@pytest.fixture(scope="module")
def pixels():
    coarse = np.random.default_rng(1).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(2, axis=1).repeat(2, axis=2)


@pytest.fixture(scope="module")
def images(model, pixels, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=pixels[:48])
    return open_images([path], model.preprocessing)


@pytest.fixture(scope="module")
def calibrated(model, pixels):
    return calibrate(model, pixels[:8])


def half_frozen(calibrated, whole_heads=()):
    """Every second weight, and all of these heads."""
    maps = []
    for each in calibrated.network.maps:
        generator = np.random.default_rng(3)
        mask = np.indices(each.shape).sum(axis=0) % 2 == 0
        mask[list(whole_heads)] = True
        if each.excluded is not None:
            mask &= ~each.excluded
        maps.append(FrozenMap(mask, generator.dirichlet(np.ones(each.shape[-1]), each.shape[:2])))
    return quantise_frozen(calibrated, maps)


def lessons_of(calibrated, images, frozen=None, softmax: Softmax = "paper", steps=STEPS, seed=0):
    return Lessons(Student(calibrated, frozen, softmax), images, steps, seed)


def taught(*arguments, **options):
    lessons = lessons_of(*arguments, **options)
    while lessons.done < lessons.steps:
        lessons.step(unheard)
    return lessons


def held_back(lessons, pixels):
    with torch.no_grad():
        lessons.student.begin()
        return lessons.loss(torch.from_numpy(pixels[48:])).item()


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("softmax", ["paper", "renormalised"])
def test_before_the_first_lesson_the_student_is_the_fake_quantised_network(calibrated, pixels, frozen, softmax):
    maps = half_frozen(calibrated, whole_heads=[1]) if frozen else None
    calibrated = replace(calibrated, network=calibrated.quantised)  # whose biases are whole units already
    student = Student(calibrated, maps, softmax)
    with torch.no_grad():
        student.begin()
        found = student(torch.from_numpy(pixels[:16]), lambda name, x: x).numpy()

    wanted = predict(calibrated, pixels[:16], maps, softmax)
    assert np.abs(found - wanted).mean() < 0.01 * wanted.std()  # float32: now and then another code


@pytest.mark.slow
def test_the_loss_falls_on_images_that_were_not_seen(calibrated, images, pixels):
    before = held_back(lessons_of(calibrated, images), pixels)

    assert held_back(taught(calibrated, images, steps=40), pixels) < 0.9 * before


@pytest.mark.slow
@pytest.mark.parametrize("codes", ["uniform", "fitted"])
def test_what_is_learnt_is_what_is_lowered(model, images, pixels, codes):
    """The student, its fake quantisation in float64 and the integers."""
    lessons = taught(calibrate(model, pixels[:8], precision=Precision(codes)), images)
    found = lessons.student.calibrated_now()
    with torch.no_grad():
        lessons.student.begin()
        own = lessons.student(torch.from_numpy(pixels), lambda name, x: x).numpy()
    fake, integers = predict(found, pixels), engine.Engine(lower(found)).run(pixels)

    for each in (own, integers):
        assert np.corrcoef(fake.ravel(), each.ravel())[0, 1] > 0.98


@pytest.mark.slow
def test_integers_decide_as_their_fake_quantisation():
    """On the embedded digits, tuned."""
    digits = load_model(f"local-dir:{DIGITS}")
    calib, test = (open_images([DIGITS / f"digits_{part}.npz"], digits.preprocessing) for part in ("calib", "test"))
    found = taught(calibrate(digits, next(calib.batches(32))), calib, steps=3).student.calibrated_now()
    pixels = next(test.batches(len(test)))
    fake, integers = predict(found, pixels), engine.Engine(lower(found)).run(pixels)

    assert (fake.argmax(1) == integers.argmax(1)).mean() >= 0.97


@pytest.mark.slow
def test_weights_end_as_codes_and_zero_points_grids_and_the_input_stay(calibrated, images):
    found = taught(calibrated, images).student.calibrated_now()

    for name, dense in found.denses.items():
        assert_array_equal(found.weights[name](dense.weight), dense.weight)
        assert_array_equal(found.weights[name].zero, calibrated.weights[name].zero)
    for name, quantiser in found.activations.items():
        assert_array_equal(quantiser.zero, calibrated.activations[name].zero)
        assert quantiser.scale.shape == calibrated.activations[name].scale.shape
        assert (quantiser.scale == calibrated.activations[name].scale).all() == (name == "input"), name
        assert_array_equal(quantiser.scale, quantiser.scale.float().double())  # 24 bits: products of two are exact
    assert found.attention == calibrated.attention


@pytest.mark.slow
@pytest.mark.parametrize("softmax", ["paper", "renormalised"])
def test_frozen_maps_stay(calibrated, images, softmax):
    maps = half_frozen(calibrated, whole_heads=[0])
    lessons = taught(calibrated, images, maps, softmax)
    before, after = (lower(each, maps, softmax) for each in (calibrated, lessons.student.calibrated_now()))

    for parameter in lessons.student.parameters.values():
        assert parameter.isfinite().all()
    attentions = [[op.frozen for op in program.operations if isinstance(op, Attention)] for program in (before, after)]
    for old, new in zip(*attentions, strict=True):
        assert_array_equal(old.mask, new.mask)
        assert_array_equal(old.codes, new.codes)
        assert_array_equal(old.row_log2, new.row_log2)


@pytest.mark.slow
def test_the_same_seed_teaches_the_same(calibrated, images):
    first, again, other = (taught(calibrated, images, steps=2, seed=seed).student.parameters for seed in (5, 5, 6))

    for name, parameter in first.items():
        assert_array_equal(parameter.detach(), again[name].detach())
    assert any((parameter != other[name]).any() for name, parameter in first.items())


def test_every_photograph_comes_once_before_one_comes_again(images, monkeypatch):
    seen = []
    monkeypatch.setattr(type(images), "batches", lambda self, part: seen.extend(self.names) or iter(()))
    for step in range(6):
        list(random_crops(images, 0, step, 32, 8))

    assert len(seen) == 6 * 32
    for start in range(0, len(seen), len(images)):
        assert sorted(seen[start : start + 48]) == sorted(images.names)
    assert seen[:48] != seen[48:96]


def test_crops_are_parts_of_the_photograph_and_their_mirror_images(model, images):
    crops = np.concatenate(list(random_crops(images, 0, 0, 32, 8)))

    assert crops.shape == (32, 16, 16, 3)
    assert crops.dtype == np.uint8
    assert_array_equal(crops, np.concatenate(list(random_crops(images, 0, 0, 32, 5))))
    assert len(np.unique(crops.reshape(32, -1), axis=0)) == 32
    assert (crops != np.concatenate(list(random_crops(images, 0, 1, 32, 8)))).any()


@pytest.mark.slow
def test_the_published_form_is_not_tuned(model, pixels):
    with pytest.raises(UserError, match="hardware"):
        Student(calibrate(model, pixels[:4], "published"), None, "paper")


@pytest.fixture(scope="module")
def options(pixels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    np.savez(folder / "calib.npz", images=pixels)
    source = ("build", f"local-dir:{folder}", "--calib", folder / "calib.npz", "--calib-images", 8)
    return *source, "--tau", 0.3, "--codes", "fitted", "--tune", STEPS


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    """The bytes of a tuned program, built without an interruption."""
    out = tmp_path_factory.mktemp("whole") / "x.eam"
    done = eamsim(*options, "-o", out)

    assert done.code == 0, done.err
    assert f"crops taught: {CROPS * STEPS}/{CROPS * STEPS}" in done.err
    assert not (out.parent / "x.eam.tuning").exists()
    return out.read_bytes()


@pytest.fixture(scope="module")
def stopped(options, tmp_path_factory):
    """The file of a tuning that was interrupted after two steps, and what was said."""
    out, plain = tmp_path_factory.mktemp("stopped") / "x.eam", Lessons.step

    def stop(self, advance):
        if self.done == 2:
            raise KeyboardInterrupt
        return plain(self, advance)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Lessons, "step", stop)
        monkeypatch.setattr(subject, "WRITE_EVERY", 0)
        done = eamsim(*options, "-o", out)
    assert not out.exists()
    return Path(f"{out}.tuning"), done


@pytest.fixture
def interrupted(stopped, tmp_path):
    """The output of the build whose tuning was interrupted."""
    shutil.copy(stopped[0], tmp_path)
    return tmp_path / "x.eam"


@pytest.mark.slow
def test_an_interruption_says_how_to_go_on(stopped):
    path, done = stopped

    assert done.code == 130
    assert f"interrupted: what was learnt is kept in {path}; the same command with --resume continues" in done.err


@pytest.mark.slow
def test_an_interrupted_tuning_goes_on_to_the_same_bytes(options, interrupted, whole, monkeypatch):
    monkeypatch.setattr("eamsim.jobs.build.quantise_on", lambda *arguments: pytest.fail("what it starts from is in the file"))
    done = eamsim(*options, "-o", interrupted, "--resume")

    assert done.code == 0, done.err
    assert f"crops taught: {CROPS * (STEPS - 2)}/{CROPS * (STEPS - 2)}" in done.err
    assert interrupted.read_bytes() == whole
    assert not Path(f"{interrupted}.tuning").exists()


@pytest.mark.slow
def test_kill_9_loses_at_most_what_was_not_written(options, whole, tmp_path):
    out = tmp_path / "x.eam"
    alike = f"from reference.tuning import tune; tune.CROPS, tune.PART = {CROPS}, {PART}; from eamsim.__main__ import entry; entry()"
    command = [sys.executable, "-c", alike, *map(str, options), "-o", str(out)]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    while not Path(f"{out}.tuning").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    done = eamsim(*options, "-o", out, "--resume")

    assert done.code == 0, done.err
    assert out.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--seed", 1, "--resume"), "its seed is 0, this command's 1"),
        (("--softmax", "renormalised", "--resume"), "its softmax is paper, this command's renormalised"),
        ((), "holds an interrupted tuning; continue it with --resume, or remove it"),
    ],
)
def test_a_tuning_of_other_choices_is_not_continued(options, interrupted, change, message):
    done = eamsim(*options, "-o", interrupted, *change)

    assert done.code == 2
    assert f"{interrupted}.tuning" in done.err
    assert message in done.err


@pytest.mark.parametrize("place", [0, 40, -1])
def test_a_damaged_file_is_refused(options, interrupted, place):
    path = Path(f"{interrupted}.tuning")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    done = eamsim(*options, "-o", interrupted, "--resume")

    assert done.code == 3
    assert f"{path}: damaged" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tau", 0, "--resume"), "--resume: continues an interrupted --tune"),
        (("--keep-accuracy", 1, "--tune", 3), "--tune: expected --tau, got a budget"),
        (("--tau", 0, "--tune", 3, "--resume"), "x.eam.tuning does not exist"),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_work(tmp_path, arguments, message):
    done = eamsim("build", "no-such-model", "--calib", tmp_path, "-o", tmp_path / "x.eam", *arguments)

    assert done.code == 2
    assert message in done.err
