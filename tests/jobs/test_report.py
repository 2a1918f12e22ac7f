"""`eamsim report`: its numbers, what hostile names become, and the page in a browser."""

import csv
import json
import math
import shutil
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import eamsim

from cost_model.chip.arrays import DOWN, run
from cost_model.chip.hardware import load
from cost_model.models.architectures import ARCHITECTURES
from cost_model.models.skeleton import skeleton
from cost_model.models.variants import refrozen, whole_heads
from cost_model.price.energy import evaluate
from cost_model.work.counts import count
from cost_model.work.gemms import gemms
from eamsim import artifact
from eamsim.jobs.costs.answer import answer
from eamsim.jobs.costs.findings import TAUS, left_out

DIGITS = Path(__file__).parents[2] / "eamsim/data/digits/digits.eam"
CIFAR = Path(__file__).parents[2] / "traces/cifar10-deit.eam"
DEIT_TINY = Path(__file__).parents[2] / "traces/deit-tiny.eam"
PRESET = Path(__file__).parents[2] / "cost_model/presets/small-npu.yaml"
SWEEP = Path(__file__).parents[2] / "docs/results/cifar10-deit/sweep.csv"
FIGURES = ("tau", "batch", "layers", "timeline", "roofline", "masks", "encodings", "accuracy")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The page of the digits model, with a sweep, and what --json said."""
    folder = tmp_path_factory.mktemp("report")
    tables = ("--table", folder / "t.csv", "--table", folder / "t.md")
    done = eamsim("report", DIGITS, "--hw", "small-npu", "--sweep", SWEEP, *tables, "-o", folder / "r.html", "--json")
    assert done.code is None or done.code == 0, done.err
    return folder, json.loads(done.out)


def test_the_numbers_are_those_of_eamsim_cost(made):
    _, found = made
    cost = json.loads(eamsim("cost", DIGITS, "--hw", "small-npu", "--json").out)
    program = artifact.read(DIGITS)[0]

    assert found["own"] == cost["rows"][0]["hardware"]
    assert found["row"]["macs_full"] == count(program).macs.full
    assert sum(layer["macs"] for layer in found["layers"]) == count(program).macs.full
    assert sum(op["macs"] for op in found["operations"]) == count(program).macs.full
    assert [point["tau"] for point in found["curves"]] == list(TAUS)
    for point in found["curves"]:
        for name, sign in (("macs_saved", 1), ("energy_change", -1), ("milliseconds", -1)):
            assert sign * point["scattered"][name] <= sign * found["ceiling"][name]
    assert found["ceiling"]["energy_change"] < 0


def test_the_tables_hold_the_curves(made):
    folder, found = made
    with (folder / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    changes = {kind: [float(row["energy_change"]) for row in rows if row["frozen"] == kind] for kind in ("scattered", "heads", "own")}
    for kind in ("scattered", "heads"):
        assert changes[kind] == [point[kind]["energy_change"] for point in found["curves"]]
    assert changes["own"] == [found["own"]["energy_change"]]
    assert [float(row["tau"]) for row in rows] == sorted(float(row["tau"]) for row in rows)
    assert len((folder / "t.md").read_text().splitlines()) == len(rows) + 2


def test_the_answer_is_in_energy_latency_and_bytes_at_the_programs_own_tau(made):
    folder, found = made
    choices = {row["kind"]: row for row in found["answer"]["choices"]}
    assert found["answer"]["tau"] == found["row"]["tau"]
    assert list(choices) == ["dense", "own", "heads", "removed"]
    own, dense = choices["own"], choices["dense"]
    assert own["energy_change"] == own["energy_uj"] / dense["energy_uj"] - 1 == found["own"]["energy_change"]
    assert own["milliseconds_change"] == own["milliseconds"] / dense["milliseconds"] - 1
    assert math.ceil(own["moved_bytes"] - dense["moved_bytes"]) == own["stored_map_bytes"]  # maps are packed to half a byte
    page = (folder / "r.html").read_text()
    for text in (
        found["answer"]["sentence"],
        f"energy {own['energy_change']:+.2%}",
        "<title>digits on small-npu</title>",
        "this program</td>",
    ):
        assert text in page


def test_with_a_sweep_of_both_the_answer_is_at_the_same_accuracy():
    """Weights lose 2 points at 0.2, heads at 0.1: of 36 heads, 3."""
    rows = [{"variant": "baseline", "runner": "engine", "softmax": "", "granularity": "", "seed": None, "tau": 0.0, "top1": 0.8}]
    for granularity, loss in (("weight", 0.1), ("head", 0.2)):
        for tau in (0.1, 0.5):
            figures = {"softmax": "renormalised", "granularity": granularity, "seed": None, "tau": tau, "top1": 0.8 - loss * tau}
            rows.append({"variant": "eam-4bits", "runner": "engine", **figures})
    bare = skeleton(ARCHITECTURES["deit_tiny_patch16_224"])
    dense = evaluate(bare, load("small-npu"))
    choices = {row["kind"]: row for row in answer(bare, dense, None, 0.2, accuracy=rows)["choices"]}
    alike = evaluate(refrozen(bare, whole_heads(bare, 3 / 36), "renormalised"), load("small-npu"))
    assert choices["heads_alike"]["energy_uj"] == alike.energy.nominal_pj / 1e6
    assert choices["scattered"]["top1"] == pytest.approx(0.78)
    assert choices["heads"]["top1"] == pytest.approx(0.76)
    assert choices["heads_alike"]["top1"] == pytest.approx(0.8 - 0.2 * 3 / 36)
    assert choices["removed"]["top1"] is None
    assert "At the same accuracy whole heads: energy" in answer(bare, dense, None, 0.2, accuracy=rows)["sentence"]
    dear = [row | ({"top1": row["top1"] / 2} if row["granularity"] == "head" else {}) for row in rows]
    assert "No whole head can be frozen at the same accuracy." in answer(bare, dense, None, 0.2, accuracy=dear)["sentence"]


def test_the_timeline_is_that_of_the_operations(made):
    _, found = made
    rows = found["timeline"]
    assert [row["name"] for row in rows] == [op["name"] for op in found["operations"]]
    for row, after in pairwise(rows):
        assert row["start"] + row["lasts"] == pytest.approx(after["start"])
        assert max(row["busy"].values()) <= row["lasts"] * (1 + 1e-12)
    assert rows[-1]["start"] + rows[-1]["lasts"] == pytest.approx(found["own"]["milliseconds"])


def test_every_mark_says_its_numbers(made):
    folder, found = made
    page = (folder / "r.html").read_text()
    assert "&lt;g id" not in page
    for operation in found["operations"]:
        assert f"<title>{operation['name']}, operation: " in page
    assert "<title>this program, τ " in page
    for point in found["curves"]:
        assert f"<title>whole heads (bound), τ {100 * point['tau']:.0f} %: " in page


def test_a_published_name_has_a_page_of_estimates(tmp_path):
    done = eamsim("report", "deit_tiny_patch16_224", "--hw", "small-npu", "-o", tmp_path / "r.html", "--json")
    assert done.code in (None, 0), done.err
    found = json.loads(done.out)
    assert [row["kind"] for row in found["answer"]["choices"]] == ["dense", "scattered", "heads", "removed"]
    assert "at random (estimate)" in found["answer"]["sentence"]
    page = (tmp_path / "r.html").read_text()
    assert "A published network: its shapes alone" in page
    assert "<title>deit_tiny_patch16_224 on small-npu</title>" in page


@pytest.mark.slow
def test_the_verdict_on_scattered_maps_of_a_deit_tiny(tmp_path):
    """tau = 0.9, maps in DRAM, batch 1: scores that need not wait save a little more than the maps cost."""
    done = eamsim("report", DEIT_TINY, "--hw", "small-npu", "-o", tmp_path / "r.html")
    assert "tau 0.9, renormalised (estimated with random masks): energy goes down by" in done.out, done.err
    assert "it pays from batch 1" in (tmp_path / "r.html").read_text()


def renamed(x: Any, new: str) -> Any:
    """Every name in it that begins with block0 begins with `new` instead."""
    if isinstance(x, str):
        return x.replace("block0", new)
    if isinstance(x, tuple):
        return tuple(renamed(each, new) for each in x)
    if is_dataclass(x) and not isinstance(x, type):
        return replace(x, **{field.name: renamed(getattr(x, field.name), new) for field in fields(x) if field.init})
    return x


@pytest.mark.slow
def test_names_cannot_speak_to_the_browser(tmp_path, monkeypatch):
    """Nor to Matplotlib, which reads $...$ as mathematics."""
    monkeypatch.chdir(tmp_path)
    evil = "<script>alert(1)</script>$\\frac{$&amp;"
    program, provenance = artifact.read(DIGITS)
    artifact.write(tmp_path / "h.eam", replace(program, name=evil, operations=renamed(program.operations, evil)), provenance)
    chip = (
        PRESET.read_text().replace("name: small-npu", f"name: {evil!r}").replace("description: An edge", "description: <img src=x>An edge")
    )
    Path("h.yaml").write_text(chip)
    done = eamsim("report", "h.eam", "--hw", "h.yaml", "-o", "r.html")
    assert done.code in (None, 0), done.err
    page = Path("r.html").read_text()
    assert ("<script>alert" in page, "<img" in page, page.count("<script>")) == (False, False, 1)
    assert "&lt;script&gt;alert(1)" in page
    assert [described["file"] for described in json.loads(Path("r.html.json").read_text())["input"]] == ["h.eam", "h.yaml"]


@pytest.mark.parametrize("dataflow", DOWN)
def test_what_the_masks_show_as_left_out_is_what_the_array_does_not_compute(dataflow):
    compute = load("small-npu").compute.model_copy(update={"dataflow": dataflow, "rows": 4, "columns": 8})
    program, _ = artifact.read(CIFAR)
    shown = 0
    for op in program.attentions:
        scores = gemms(program, op)[0]
        computed = ~left_out(op, compute)
        assert np.count_nonzero(computed) == run(scores, dataflow, 4, 8, "tile").results
        shown += np.count_nonzero(~computed)
    assert shown > 0


def test_the_papers_softmax_leaves_nothing_out():
    program, _ = artifact.read(DEIT_TINY)
    assert {op.softmax for op in program.attentions} == {"paper"}
    assert not any(left_out(op, load("small-npu").compute).any() for op in program.attentions)


@pytest.mark.slow
def test_a_chip_without_dram_is_shown_up_to_the_batch_it_holds(tmp_path):
    done = eamsim("report", CIFAR, "--hw", "simd-mcu", "-o", tmp_path / "r.html", "--json")
    assert done.code in (None, 0), done.err
    found = json.loads(done.out)
    assert found["batches"]["this program"]["batches"] == [1, 2, 4, 8]
    assert set(found["roofline"]["levels"]) == {"sram", "rom"}
    for level in found["roofline"]["levels"].values():
        for point in level["points"]:
            reach = point["macs_per_byte"] * level["bytes_per_second"]
            assert point["macs_per_second"] <= min(found["roofline"]["peak"], reach) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--hw", "small-npu", "-o", "r.txt"), "--out: expected a name that ends in .html, got r.txt"),
        (
            ("--hw", "small-npu", "-o", "missing/r.html"),
            "--out: missing/r.html cannot be written; choose a file in an existing, writable folder",
        ),
        (("--hw", "no-such-chip", "-o", "r.html"), "--hw: expected a .yaml file or one of"),
        (("--hw", "small-npu", "-o", "r.html", "--table", "t.xls"), "--table: expected a name that ends in .csv or .md, got t.xls"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    done = eamsim("report", DIGITS, *options)
    assert (done.code, message in done.err, list(tmp_path.iterdir())) == (2, True, []), done.err


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Chromium and ChromeDriver (Debian packages chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, of the extra test")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
    for flag in (*flags, "disable-component-update", "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.mark.parametrize("width", [375, 1440])
def test_the_page_in_a_browser(browser, made, width):
    folder, _ = made
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(f"file://{folder}/r.html")

    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    panels = browser.execute_script(
        "return [...document.querySelectorAll('.panels svg')].map((x) => x.getBoundingClientRect()).map((x) => [x.x, x.y])"
    )
    if width == 375:
        assert len({y for _, y in panels}) == len(panels)  # one chart a row
    for name in FIGURES:
        size = browser.execute_script(
            f"const box = document.querySelector('#figure-{name} svg').getBoundingClientRect(); return [box.width, box.height]"
        )
        assert min(size) > 50, name
    assert browser.get_log("browser") == []


def test_print_opens_what_is_folded_and_repeats_headers(browser, made):
    folder, _ = made
    browser.get(f"file://{folder}/r.html")
    assert browser.execute_script("return document.querySelectorAll('details:not([open])').length") > 0
    browser.execute_cdp_cmd("Page.printToPDF", {})
    assert browser.execute_script("return document.querySelectorAll('details:not([open])').length") == 0
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert (
        browser.execute_script("return getComputedStyle(document.querySelector('#table-operations thead')).display") == "table-header-group"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_tables_sort_by_click(browser, made):
    folder, found = made
    browser.get(f"file://{folder}/r.html")
    table = browser.find_element("id", "table-operations")
    head = table.find_elements("css selector", "thead th")[2]
    for order in ("ascending", "descending"):
        head.find_element("tag name", "button").click()
        macs = [int(cell.get_attribute("data-value")) for cell in table.find_elements("css selector", "tbody td:nth-child(3)")]
        assert head.get_attribute("aria-sort") == order
        assert macs == sorted((op["macs"] for op in found["operations"]), reverse=order == "descending")
