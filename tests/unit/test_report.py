"""`eamsim report`: its numbers, what hostile names become, and the page in a browser."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import eamsim

from cost_model.counts import count
from eamsim import artifact
from eamsim.cli.report import TAUS

DIGITS = Path(__file__).parents[2] / "eamsim/data/digits/digits.eam"
DEIT_TINY = Path(__file__).parents[2] / "traces/deit-tiny.eam"
SWEEP = Path(__file__).parents[2] / "docs/results/cifar10-deit/sweep.csv"
FIGURES = ("tau", "batch", "layers", "roofline", "masks", "encodings", "accuracy")


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
        assert point["scattered"]["macs_saved"] <= found["ceiling"]


def test_the_tables_hold_the_curves(made):
    folder, found = made
    with (folder / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["energy_change"]) for row in rows[::2]] == [point["scattered"]["energy_change"] for point in found["curves"]]
    assert len((folder / "t.md").read_text().splitlines()) == len(rows) + 2


def test_scattered_maps_of_a_deit_tiny_cost_energy_at_batch_one(tmp_path):
    """FIELD_NOTES, section 5: tau = 0.9, maps in DRAM, batch 1."""
    done = eamsim("report", DEIT_TINY, "--hw", "small-npu", "-o", tmp_path / "r.html")
    assert "tau 0.9, renormalised (estimated with random masks): energy goes up by" in done.out, done.err
    assert "it pays from batch 5" in (tmp_path / "r.html").read_text()


def test_names_cannot_speak_to_the_browser(tmp_path):
    program, provenance = artifact.read(DIGITS)
    artifact.write(tmp_path / "h.eam", replace(program, name="<script>alert(1)</script>"), provenance)
    assert eamsim("report", tmp_path / "h.eam", "--hw", "small-npu", "-o", tmp_path / "r.html").code in (None, 0)
    page = (tmp_path / "r.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--hw", "small-npu", "-o", "r.txt"), "--out: expected a .html file"),
        (("--hw", "small-npu", "-o", "missing/r.html"), "--out: expected a .html file in an existing, writable folder"),
        (("--hw", "no-such-chip", "-o", "r.html"), "--hw: expected a .yaml file or one of"),
        (("--hw", "small-npu", "-o", "r.html", "--table", "t.xls"), "--table: expected a .csv or .md file"),
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
    for name in FIGURES:
        size = browser.execute_script(
            f"const box = document.querySelector('#figure-{name} svg').getBoundingClientRect(); return [box.width, box.height]"
        )
        assert min(size) > 50, name
    assert browser.get_log("browser") == []


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
