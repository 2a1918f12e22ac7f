"""What reaches a terminal: tables that fit it, text that moves no cursor, and word of long work."""

import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import eamsim, save_data, save_model
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from eamsim import artifact, golden
from eamsim.cli import output, streams
from eamsim.cli.model import build, entropy, sweep
from eamsim.cli.program import bench, widths
from eamsim.datapath import KNOBS
from eamsim.jobs.search.widths import WidthTrial
from eamsim.jobs.sweep_table import Row

WIDTH = 80
DIGITS = Path(artifact.__file__).parent / "data" / "digits"
ROOT = Path(__file__).parents[2]
words = st.text("abcdefghij", min_size=1, max_size=12)
phrases = st.lists(words, min_size=1, max_size=4).map(" ".join)


def assert_fits(found: Table, width: int = WIDTH) -> None:
    """No line is longer, and every cell and every word of a header stands there whole."""
    lines = output.fitted(found.columns, width)
    assert output.widest(lines) <= width, "\n".join(lines)
    present = set(re.split(r"\s+", "\n".join(lines)))
    for column in found.columns:
        assert {*str(column.header).split()} <= present
        assert all(str(cell).strip() in "\n".join(lines) for cell in column.cells)


@given(st.data())
def test_a_table_fits_and_splits_no_word(data: st.DataObject):
    columns = data.draw(st.lists(phrases, min_size=1, max_size=14))
    rows = data.draw(st.lists(st.lists(words, min_size=len(columns), max_size=len(columns)), max_size=4))
    found = output.table(columns, rows, keys=data.draw(st.integers(1, 2)))
    assert_fits(found)
    assert len(output.fitted(found.columns, 1000)) == 1 + len(rows)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    program = save_model(tmp_path / "m.eam")
    save_data(tmp_path / "d.npz", program)
    taps: dict[str, np.ndarray] = {}
    golden.run(program, np.load(tmp_path / "d.npz")["images"][0], taps)
    np.savez(tmp_path / "dump.npz", allow_pickle=False, **{name: integers[None] + 10**6 for name, integers in taps.items()})
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo", "--threads", "1"),
        ("cost", DIGITS / "digits.eam", "--hw", "small-npu", "--tau", "0.2,0.9"),
        ("cost", "swin_tiny_patch4_window7_224", "--hw", "small-npu", "--tau", "0.1"),
        ("cost", "deit_tiny_patch16_224", "--compare", DIGITS / "digits.eam", "--hw", "small-npu"),
        ("search", "deit_tiny_patch16_224", "--rows", "8,16", "--columns", "8", "--sram", "1024", "--batch", "1"),
        ("trace", "export", "m.eam", "--data", "d.npz", "-o", "vectors", "--taps", "block0.*"),
        ("trace", "record", "m.eam", "--data", "d.npz", "-o", "t.h5", "--by", "golden", "--images", "1"),
        ("trace", "diff", "m.eam", "dump.npz", "--data", "d.npz"),
    ],
)
def test_the_tables_of_commands_fit_80_columns(folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple):
    shown: list[Table] = []
    rendered = output._rendered

    def spy(lines):
        shown.extend(line for line in lines if isinstance(line, Table))
        return rendered(lines)

    monkeypatch.setattr(output, "_rendered", spy)
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    assert eamsim(*arguments).code == (1 if "diff" in arguments else 0)
    if arguments[:2] == ("trace", "record"):
        assert eamsim("trace", "inspect", "t.h5").code == 0
    assert shown
    for each in shown:
        assert_fits(each)


def test_the_tables_of_long_commands_fit_80_columns():
    bits = {"mean": 4.125, "min": 0.001, "max": 6.75, "zero": 0.125}
    heads = [{"layer": 11, "head": 11, "excluded": 0.5, "float": bits, "quantised": bits, "divergence": bits}]
    assert_fits(entropy.head_table(heads))
    row = Row("deit_small_patch16_224", "random-4bits", "engine", "paper", "weight", "head", "random", 1, 0.25, 60, 0.79, 0.9, 0.3125)
    other = Row("m", "eam-4bits", "fakequant", "renormalised", "tile:16x16", "model", "output", None, 0.5, 60, 0.5, 0.5)
    assert_fits(sweep.row_table([row, other]))
    quartiles = [1000.25, 1001.25]
    times = {"ms_per_image": {"eamsim": 1000.5, "onnxruntime": 1000.5}, "ratio": {"onnxruntime": 1.5}, "time_to_first": 1.0}
    times |= {"ms_quartiles": dict.fromkeys(times["ms_per_image"], quartiles), "ratio_quartiles": {"onnxruntime": quartiles}}
    measured = {"model": "deit_small_patch16_224", "batch": 128, "threads": 64, "peak_share": 0.5, "gmacs_per_second": 1e4}
    measured |= times | {"peak_memory_bytes": 10**10, "time_to_first_quartiles": quartiles, "macs_to_first": 1.0}
    assert_fits(bench.result_table([measured]))
    assert_fits(bench.first_table([measured]))


def test_the_tables_of_searches_fit_80_columns(tmp_path: Path):
    trials = [
        {"granularity": kind, "tau": tau, "macs_saved": tau / 14, "top1": 0.8125, "images": 5000, "loss_change": 0.125, "pareto": True}
        for kind, tau in (("none", 0.0), ("weight+row+column+tile:16x16", 0.999))
    ]
    found: dict[str, Any] = {"trials": trials, "judged": {"labelled": False, "images": 5000}}
    wide: dict[str, Any] = {"energy_uj": 12345.678, "area_um2": 1.2345e9, "cost": 0.123, "noise": 0.1234, "loss": -0.1234, "error": 0.1234}
    tested = WidthTrial(**dict.fromkeys(KNOBS, 32), **wide, stage="joint", top1=0.5, images=5000, search="", kept=True, chosen=True)
    found_widths = {"sums": {"proven": 32, "observed": 20, "images": 5000}, "keep": 0.005, "hardware": {"name": "small-npu"}}
    found_widths |= {"judged": {"labelled": True, "images": 5000, "views": 3}}
    lines = (*build.write_trials(tmp_path / "x.eam", found), *widths.report([tested], found_widths, tmp_path / "x.csv"))
    shown = [line for line in lines if isinstance(line, Table)]
    assert len(shown) == 3
    for each in shown:
        assert_fits(each)


def test_the_list_of_commands_cuts_no_help():
    for command in ((), ("trace",), ("plot",), ("hardware",)):
        shown = eamsim(*command, "-h")
        assert shown.code == 0
        assert "..." not in shown.out.partition("Commands:")[2], command


def test_what_comes_from_outside_moves_no_cursor_and_splits_no_line(folder: Path):
    evil, shown = "\x1b[31mred\x1b[0m\nnew line\t\x9b2J\u202e:dog: [bold]", r"\x1b[31mred\x1b[0m\nnew line\t\x9b2J\u202e:dog: [bold]"
    save_model(folder / "m.eam", labels=[evil, "b", "c", "d", "e"])
    done = eamsim("run", "m.eam", "d.npz", "--top", "5")
    assert done.code == 0
    assert len(done.out.splitlines()) == 9
    assert all(shown in line for line in done.out.splitlines())
    results = json.loads(eamsim("run", "m.eam", "d.npz", "--top", "5", "--json").out)["results"]
    assert all(evil in [each["label"] for each in result["classes"]] for result in results)
    assert output.fitted(output.table(["name"], [[evil]]).columns, WIDTH) == ["name", shown]
    for command in (("run", f"{evil}.eam", "d.npz"), ("cost", evil), ("cost", "m.eam", "--hw", f"{evil}.yaml"), (evil,)):
        done = eamsim(*command)
        assert done.code in (2, 3)
        assert all(line.isprintable() for line in done.err.splitlines())
        assert shown.split()[0] in done.err


PRINTERS = {
    "eamsim/cli/output.py": "escapes lines and cells",
    "eamsim/cli/outcome.py": "escapes errors",
    "eamsim/cli/__init__.py": "the version",
    "eamsim/cli/program/bench.py": "a number",
    "eamsim/jobs/stages.py": "a script, of its own numbers",
    "reference/models/train.py": "a script that reads nothing from outside",
}


def test_nobody_else_prints():
    found = set()
    for path in (each for folder in ("eamsim", "cost_model", "reference") for each in (ROOT / folder).rglob("*.py")):
        if re.search(r"(?<![\w.])(print|typer\.s?echo|sys\.std(out|err)\.write)\(", path.read_text()):
            found.add(path.relative_to(ROOT).as_posix())
    assert found == PRINTERS.keys()


def test_notes_are_escaped(capsys: pytest.CaptureFixture):
    output.note("a\x1b[2J\nb")
    assert capsys.readouterr().err == "a\\x1b[2J\\nb\n"


def test_progress_is_not_silent_for_long(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(output, "QUIET_SECONDS", 0.05)
    with output.progress("slow", 4) as advance:
        time.sleep(0.5)
        advance(4)
    time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("slow: 0/4, ") for line in lines[:-1])
    assert lines[-1].startswith("slow: 4/4, ")


def test_a_command_is_not_silent_before_its_first_stage(capfd: pytest.CaptureFixture):
    script = (
        "import time; from eamsim import cli; from eamsim.cli import streams\n"
        "streams.patience.__defaults__ = (0.2,); cli.main = lambda: (time.sleep(1), exit(5))\n"
        "from eamsim.__main__ import entry; entry()"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 5
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(re.fullmatch(r"working: \d+ s", line) for line in lines)


@pytest.mark.parametrize("terminal", [True, False])
def test_after_minutes_a_terminal_still_waits_two_seconds_and_a_file_five(monkeypatch: pytest.MonkeyPatch, terminal: bool):
    inner = io.TextIOWrapper(told := io.BytesIO(), "utf-8")
    stream = streams.Lasting(inner, OSError)
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    now = time.monotonic()
    monkeypatch.setattr(streams, "monotonic", lambda: now)
    beats = streams.Heartbeat(stream)
    beats.start = now - 100
    stream.written = now - 3
    time.sleep(0.5)
    beats.stop()
    assert (told.getvalue() != b"") is terminal


def test_what_is_left_is_told_at_the_pace_so_far(monkeypatch: pytest.MonkeyPatch):
    plain = output.PlainProgress("slow", 40)
    monkeypatch.setattr(output, "perf_counter", lambda: plain.start + 6)
    assert plain._times() == "6 s"
    plain.done = 10
    assert plain._times() == "6 s, 18 s left"


def test_patience_grows_with_the_time_a_stage_takes(monkeypatch: pytest.MonkeyPatch):
    plain = output.PlainProgress("slow", 4)
    for seconds, patience in ((1, output.QUIET_SECONDS), (40, 4), (10_000, 5)):
        monkeypatch.setattr(output, "perf_counter", lambda seconds=seconds: plain.start + seconds)
        assert plain._patience() == pytest.approx(patience)
