import json
import multiprocessing
import re
from concurrent.futures import Future
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from eamsim.errors import UserError  # noqa: E402
from eamsim.jobs import sweep as library  # noqa: E402
from eamsim.jobs import workers as places  # noqa: E402
from eamsim.jobs.measure import Accuracy  # noqa: E402


def with_accuracy(**changes):
    def damage(content):
        tree = json.loads(content)
        tree["accuracy"] |= changes
        return json.dumps(tree, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    return damage


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + b" ",
    "deep": lambda content: b"[" * 100_000,
    "binary": lambda content: b"\xff" + content,
    "list": lambda content: b'{"accuracy":[1,2,3]}',
    "other top1": with_accuracy(top1=0.5),
    "other images": with_accuracy(images=59),
    "NaN": with_accuracy(top1=float("nan")),
    "more": with_accuracy(more=1),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_unit_is_reported_and_counts_as_not_run(tmp_path, name):
    unit = library.Choices([0.0], ["eam-4bits"], ["paper"], ["weight"], ["head"], ["entropy"], [], "engine").units("net")[0]
    file, reports = library._UnitFile(tmp_path, unit, {"model_sha256": "0" * 64}), []
    assert file.read(reports.append) is None
    file.write(Accuracy(0.25, 0.75, 60))
    assert file.read(reports.append) == Accuracy(0.25, 0.75, 60)
    assert reports == []

    file.path.write_bytes(DAMAGES[name](file.path.read_bytes()))

    assert file.read(reports.append) is None
    assert len(reports) == 1
    assert re.fullmatch(rf"{file.path}: damaged \(.+\); its unit runs again", reports[0])


def test_no_more_units_are_unsaved_than_there_are_workers():
    units: Any = range(9)
    submitted: list[Future] = []

    def submit(unit):
        submitted.append(Future())
        if unit:
            submitted[unit].set_result(unit)
        return submitted[unit]

    finished = []
    for unit, result in places.results(submit, units, 2):
        assert unit == result
        assert len(submitted) - len(finished) <= 2
        finished.append(unit)
        if unit == 8:  # the first is the last to end
            submitted[0].set_result(0)
    assert finished == [*range(1, 9), 0]


def test_a_dead_worker_is_an_error():
    nothing: Any = None

    def kill_the_worker():
        with places.processes(1)(print, nothing) as (submit, _):
            future = submit(nothing)
            for process in multiprocessing.active_children():
                process.kill()
            future.result()

    with pytest.raises(UserError, match="a worker process died, perhaps out of memory; continue with --resume, with fewer --workers"):
        kill_the_worker()


def test_the_threads_of_torch_are_restored():
    before = torch.get_num_threads()
    with library.one_torch_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
