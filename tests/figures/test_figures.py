"""`eamsim plot`: what is drawn equals the data, files are legible and reproducible, and what cannot be drawn is refused."""

import dataclasses
import json
import sys
import xml.etree.ElementTree as ElementTree
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import eamsim
from map_files import write_maps
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

pytest.importorskip("matplotlib", reason="needs the extra 'plot'")

from matplotlib.collections import LineCollection

from eamsim import artifact
from eamsim.datapath import KNOBS
from eamsim.errors import BadFile, UserError
from eamsim.figures import curves as figures_curves
from eamsim.figures import designs as figures_designs
from eamsim.figures import style as figures
from eamsim.figures import widths as figures_widths
from eamsim.figures.panels import ablation_panels, accuracy_panels, read_sweeps, short_name
from eamsim.figures.table1 import table1
from eamsim.files.origin import without_folders
from eamsim.jobs.search import widths as width_search
from eamsim.jobs.search.budget import BudgetTrial, mark
from eamsim.jobs.search.design_table import read_designs
from eamsim.jobs.search.front import write_front
from eamsim.jobs.sweep_table import Row, write_sweep

DIGITS = Path(str(files("eamsim") / "data" / "digits"))
COLUMN_PIXELS, PAGE_PIXELS = 1020, 2100
MODEL = "local-dir:models/tiny"


def unit(variant: Any, runner: Any, softmax: Any = "", order: Any = "", seed=None, tau=0.0, model=MODEL, granularity="weight") -> Row:
    chosen: tuple[str, Any] = ("", "") if variant == "baseline" else (granularity, "head")
    return Row(model, variant, runner, softmax, *chosen, order, seed, tau, 200, 0.5, 1.0)


def sweep_rows(model=MODEL, softmaxes=("paper", "renormalised"), seeds=(0, 1, 2)) -> list[Row]:
    """A sweep with an accuracy of its own in every row, the taus not in order."""
    rng = np.random.default_rng(len(model))
    rows = [unit("baseline", runner, model=model) for runner in ("float", "fakequant", "engine")]
    for tau in (0.2, 0.1, 0.9):
        for softmax in softmaxes:
            rows.append(unit("eam-fp32", "fakequant", softmax, "entropy", None, tau, model=model))
            rows.append(unit("eam-4bits", "engine", softmax, "entropy", None, tau, model=model))
            rows += [unit("random-4bits", "engine", softmax, "random", seed, tau, model=model) for seed in seeds]
    return [dataclasses.replace(row, top1=round(float(value), 4)) for row, value in zip(rows, rng.random(len(rows)), strict=True)]


TRIALS = mark(
    [BudgetTrial("none", 0, 0, 0.8, 300, 0), BudgetTrial("row", 0.1, 0.02, 0.7, 300, 0.1), BudgetTrial("head", 0.2, 0.03, 0.75, 300, 0.1)],
    2,
)


def datapath(stage: str, cost: float, noise: float, loss: float = 0, chosen: bool = False, **narrow: int) -> width_search.WidthTrial:
    widths: dict[str, Any] = dict.fromkeys(KNOBS, 16) | narrow
    return width_search.WidthTrial(**widths, stage=stage, energy_uj=1, area_um2=1, cost=cost, noise=noise, loss=loss, error=0.001, top1=0.8,
                              images=300, search="a", kept=stage != "alone" and loss < 0.005, chosen=chosen)  # fmt: skip


WIDTHS = [
    datapath("default", 1, 0),
    datapath("alone", 0.9, 0.2, residual_bits=7),
    datapath("alone", 0.95, 0.01, residual_bits=12),
    datapath("alone", 0.8, 0.05, reciprocal_bits=8, norm_fraction_bits=9),
    datapath("joint", 0.4, 0.02, loss=0.001, chosen=True, residual_bits=12, reciprocal_bits=8, norm_fraction_bits=9, multiplier_bits=11),
    datapath("joint", 0.3, 0.03, loss=0.02, residual_bits=11, reciprocal_bits=8, norm_fraction_bits=9, multiplier_bits=11),
]


DESIGNS = "granularity,latency_ms,energy_uj,area_mm2,pareto\nnone,4,9,1.5,false\nhead,2,8,1,true\nhead,8,3,2,true\n"


@pytest.fixture
def inputs(tmp_path) -> dict[str, Path]:
    """A file of statistics, of a sweep and of a budget search."""
    paths = {name: tmp_path / name for name in ("stats.h5", "sweep.csv", "front.csv", "widths.csv", "designs.csv")}
    write_maps(paths["stats.h5"])
    write_sweep(paths["sweep.csv"], sweep_rows())
    write_front(paths["front.csv"], TRIALS)
    width_search.write_trials(paths["widths.csv"], WIDTHS)
    paths["designs.csv"].write_text(DESIGNS)
    return paths


FILES = {
    "fig2": ("stats.h5", PAGE_PIXELS, ["entropy (bits)", "layer 0, head 0", "layer 2, head 1"]),
    "fig3": ("stats.h5", COLUMN_PIXELS, ["entropy (bits)", "query token", "key token"]),
    "fig4": ("stats.h5", COLUMN_PIXELS, ["divergence (bits)", "layer (from left to right heads 0 to 1 of each)", "mean", "maximum"]),
    "fig5": (
        "sweep.csv",
        COLUMN_PIXELS,
        [
            *("top-1 accuracy (%)", "frozen attention weights, τ (%)", "tiny", "200 images", "RepQ-ViT, integers", "full precision"),
            *("EAM FP32, renormalised softmax, fake-quantised", "EAM 4 bits, softmax of Eq. 15, integers"),
        ],
    ),
    "fig6": ("sweep.csv", PAGE_PIXELS, ["top-1 accuracy (%)", "200 images, softmax of Eq. 15", "EAM 4 bits", "random 4 bits"]),
    "widths": (
        "widths.csv",
        PAGE_PIXELS,
        ["noise of the logits (%)", "bits", "residual stream", "tested together", "points lost, and at most", "chosen", "fails"],
    ),
    "designs": ("designs.csv", COLUMN_PIXELS, ["energy per image (µJ)", "latency of a batch (ms)", "front: head (2)", "front: none (0)"]),
    "front": ("front.csv", COLUMN_PIXELS, ["top-1 accuracy (%)", "multiply-accumulates saved (%)", "row", "chosen"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_files_are_whole_named_with_units_and_the_same_every_time(inputs, tmp_path, name):
    source, width, texts = FILES[name]
    runs = [tmp_path / "a", tmp_path / "new" / "b"]
    for out in runs:
        finished = eamsim("plot", name, inputs[source], "-o", out, "--json")
        assert (finished.code, finished.err) == (0, "")
    first = runs[0]
    with Image.open(first / f"{name}.png") as image:
        image.load()
        assert image.width == width
    svg = ElementTree.parse(first / f"{name}.svg").getroot()
    drawn = {"".join(element.itertext()) for element in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert drawn >= set(texts)
    for kind in ("png", "svg"):
        assert (first / f"{name}.{kind}").read_bytes() == (runs[1] / f"{name}.{kind}").read_bytes()
    manifest = json.loads((runs[1] / f"{name}.json").read_text())
    assert manifest == without_folders(json.loads(finished.out))
    assert [file["sha256"] for file in manifest["output"]] == [artifact.sha256(runs[1] / f"{name}.{kind}") for kind in ("png", "svg")]
    assert manifest["input"][0]["sha256"] == artifact.sha256(inputs[source])
    assert sorted(path.name for path in first.iterdir()) == [f"{name}.{kind}" for kind in ("json", "png", "svg")]


def lines(figure) -> dict[tuple[str, str], list[list[float]]]:
    """(title, label) -> x and y of every line."""
    return {
        (axis.get_title(), str(line.get_label())): np.asarray(line.get_xydata()).T.tolist() for axis in figure.axes for line in axis.lines
    }


def test_curves_hold_the_rows_of_the_table():
    rows = sweep_rows()
    drawn = lines(figures_curves.accuracy_figure(accuracy_panels(rows)))

    eam = {(row.variant, row.softmax, row.tau): 100 * row.top1 for row in rows if row.variant.startswith("eam")}
    title = "tiny\n200 images"
    for variant, runner in (("eam-fp32", "fake-quantised"), ("eam-4bits", "integers")):
        for softmax, words in (("paper", "softmax of Eq. 15"), ("renormalised", "renormalised softmax")):
            name = "EAM FP32" if variant == "eam-fp32" else "EAM 4 bits"
            x, y = drawn.pop((title, f"{name}, {words}, {runner}"))
            assert_allclose(x, [10, 20, 90], rtol=1e-15)
            assert y == [eam[variant, softmax, tau] for tau in (0.1, 0.2, 0.9)]
    baselines = {label: y[0] for (_, label), (_, y) in drawn.items()}
    names = ["full precision", "RepQ-ViT, fake-quantised", "RepQ-ViT, integers"]
    assert baselines == {name: 100 * row.top1 for name, row in zip(names, rows[:3], strict=True)}


def test_random_fixing_is_drawn_as_mean_and_range_of_its_seeds():
    rows = sweep_rows(softmaxes=("paper",))
    figure = figures_curves.accuracy_figure(ablation_panels(rows))

    seeds = np.array([[row.top1 for row in rows if (row.variant, row.tau) == ("random-4bits", tau)] for tau in (0.1, 0.2, 0.9)])
    assert_allclose(lines(figure)["tiny\n200 images", "random 4 bits"][1], 100 * seeds.mean(axis=1), rtol=1e-14)
    (band,) = figure.axes[0].collections
    outline = np.asarray(band.get_paths()[0].vertices)
    for tau, values in zip((10, 20, 90), seeds, strict=True):
        at_tau = outline[np.isclose(outline[:, 0], tau), 1]
        assert_allclose([at_tau.min(), at_tau.max()], [100 * values.min(), 100 * values.max()], rtol=1e-14)


def test_models_and_choices_of_what_is_frozen_have_panels_of_their_own():
    rows = sweep_rows() + sweep_rows("hf-hub:timm/other") + [unit("eam-4bits", "engine", "paper", "entropy", tau=0.1, granularity="row")]

    titles = ["tiny\n200 images, weight", "other\n200 images, weight", "tiny\n200 images, row"]
    assert [panel.title for panel in accuracy_panels(rows)] == titles
    softmaxes = ["softmax of Eq. 15", "renormalised softmax"]
    assert [panel.title for panel in ablation_panels(rows)] == [f"{m}\n200 images, {s}" for m in ("tiny", "other") for s in softmaxes]


def test_random_rows_stand_beside_every_order():
    rows = sweep_rows(softmaxes=("paper",)) + [unit("eam-4bits", "engine", "paper", "output", tau=tau) for tau in (0.1, 0.2)]
    panels = ablation_panels(rows)

    assert [panel.title for panel in panels] == ["tiny\n200 images, entropy", "tiny\n200 images, output"]
    assert [[curve.variant for curve in panel.curves] for panel in panels] == [["eam-4bits", "random-4bits"]] * 2


def test_the_front_holds_the_trials():
    figure = figures_curves.front_figure(TRIALS)
    (axis,) = figure.axes

    (steps,) = axis.lines
    assert_array_equal(steps.get_xydata(), [[0, 80], [3, 75]])
    points = {tuple(map(float, point)) for marks in axis.collections for point in np.asarray(marks.get_offsets())}
    assert points == {(0, 80), (2, 70), (3, 75)}


def test_a_panel_holds_the_noise_of_one_width_and_the_last_one_what_was_tested():
    figure = figures_widths.widths_figure(WIDTHS)

    residual, fraction, reciprocal, tested = (figure.axes[index] for index in (0, 5, 6, 8))
    noise = {axis: np.asarray(axis.lines[0].get_xydata()) for axis in (residual, fraction, reciprocal)}
    assert_allclose(noise[residual], [[7, 20], [12, 1]])
    assert len(noise[fraction]) == 0
    assert_allclose(noise[reciprocal], [[8, 5]])
    assert [np.asarray(axis.lines[-1].get_xdata())[0] for axis in (residual, reciprocal)] == [12, 8]
    kept, failed = (np.asarray(line.get_xydata()) for line in tested.lines[1:])
    assert_allclose(kept, [[1, 0], [0.4, 0.1]])
    assert_allclose(failed, [[0.3, 2]])
    bars = [segment for marks in tested.collections if isinstance(marks, LineCollection) for segment in marks.get_segments()]
    assert_allclose(bars[-1], [[0.3, 2], [0.3, 2.16449]])


def test_designs_on_the_front_stand_out(inputs):
    (axis,) = figures_designs.designs_figure(read_designs(inputs["designs.csv"])).axes

    points = [np.asarray(marks.get_offsets()).tolist() for marks in axis.collections]
    assert [each for each in points if each] == [[[4, 9]], [[2, 8], [8, 3]]]


@pytest.mark.parametrize(("old", "new"), [("pareto", "best"), ("true", "True"), (",9,", ",x,"), (",9,", ","), ("true", "false")])
def test_a_table_of_no_designs_is_refused(inputs, old, new):
    inputs["designs.csv"].write_text(DESIGNS.replace(old, new))
    with pytest.raises(BadFile, match="make it again with `eamsim search -o`"):
        read_designs(inputs["designs.csv"])


@pytest.mark.parametrize(("model", "name"), [("deit", "deit"), ("local-dir:a/b/", "b"), ("hf-hub:timm/vit", "vit"), ("local-dir:c", "c")])
def test_models_go_by_the_last_part_of_their_name(model, name):
    assert short_name(model) == name


def test_table_1_holds_the_rows_of_its_sweeps(tmp_path):
    rows = sweep_rows(softmaxes=("paper",)), sweep_rows("other", softmaxes=("paper",))[:6]
    paths = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for path, part in zip(paths, rows, strict=True):
        write_sweep(path, part)

    finished = eamsim("plot", "table1", *paths, "-o", tmp_path, "--json")

    assert finished.code == 0
    found = {(row.model, row.variant, row.runner, row.tau): f"{100 * row.top1:.2f}" for part in rows for row in part}

    def cells(*key) -> list[str]:
        return [found.get((model, *key), "-") for model in (MODEL, "other")]

    expected = [
        ["Method", "Prec. (W/A)", "tiny", "other"],
        ["full precision", "32/32", *cells("baseline", "float", 0)],
        ["RepQ-ViT, fake-quantised", "4/4", *cells("baseline", "fakequant", 0)],
        ["RepQ-ViT, integers", "4/4", *cells("baseline", "engine", 0)],
        ["EAM 4 bits, τ = 10 %", "4/4", *cells("eam-4bits", "engine", 0.1)],
        ["EAM 4 bits, τ = 20 %", "4/4", *cells("eam-4bits", "engine", 0.2)],
        ["Images", "", "200", "200"],
    ]
    assert cells("eam-4bits", "engine", 0.1)[1] == "-"
    markdown = [[cell.strip() for cell in line.strip("|").split("|")] for line in (tmp_path / "table1.md").read_text().splitlines()]
    assert markdown == [expected[0], ["---", "---", "---:", "---:"], *expected[1:]]
    assert (tmp_path / "table1.csv").read_text().splitlines()[4] == ",".join(['"EAM 4 bits', ' τ = 10 %"', *expected[4][1:]])
    outputs = json.loads(finished.out)["output"]
    assert [file["sha256"] for file in outputs] == [artifact.sha256(tmp_path / f"table1.{kind}") for kind in ("md", "csv")]


def test_table_1_names_what_differs():
    rows = [*sweep_rows(), unit("eam-4bits", "fakequant", "paper", "entropy", tau=0.1)]

    assert [line[0] for line in table1(rows, [0.1])[4:-1]] == [
        "EAM 4 bits, τ = 10 %, softmax of Eq. 15, integers",
        "EAM 4 bits, τ = 10 %, renormalised softmax, integers",
        "EAM 4 bits, τ = 10 %, softmax of Eq. 15, fake-quantised",
    ]


def test_tables_that_do_not_belong_together_are_refused(tmp_path):
    path, rows = tmp_path / "sweep.csv", sweep_rows()
    write_sweep(path, [])
    with pytest.raises(UserError, match=r"sweep\.csv: expected at least one row, got none; run `eamsim sweep`"):
        read_sweeps([path])
    write_sweep(path, [*rows, dataclasses.replace(rows[0], top1=0.125)])
    with pytest.raises(UserError, match=rf"one unit with two accuracies, {rows[0].top1} and 0\.125: SweepUnit\(model='{MODEL}'"):
        read_sweeps([path])
    write_sweep(path, [rows[0], dataclasses.replace(rows[1], images=100)])
    with pytest.raises(UserError, match=f"{MODEL} was evaluated on 200 and on 100 images; give one of the tables"):
        read_sweeps([path])
    write_sweep(path, rows)
    assert read_sweeps([path, path]) == rows


def test_tables_without_the_rows_of_a_figure_are_refused():
    baselines, eam = sweep_rows()[:3], [row for row in sweep_rows() if row.variant != "random-4bits"]

    with pytest.raises(UserError, match="expected rows of the variants eam-fp32 or eam-4bits, got none; run `eamsim sweep`"):
        accuracy_panels(baselines)
    with pytest.raises(UserError, match="expected rows of eam-4bits and random-4bits that differ in the order alone, got none; run"):
        ablation_panels(eam)
    with pytest.raises(UserError, match=r"expected rows of eam-4bits at tau 0\.3, 0\.4, got none; give other --tau"):
        table1(eam, [0.3, 0.4])


def test_a_folder_that_cannot_be_made_is_refused(inputs, tmp_path):
    (tmp_path / "file").touch()
    finished = eamsim("plot", "fig5", inputs["sweep.csv"], "-o", tmp_path / "file" / "out")

    assert finished.code == 3
    assert finished.err.startswith(f"error: {tmp_path / 'file' / 'out'}: cannot be made (Not a directory)")


def test_without_matplotlib_the_extra_is_named(inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for arguments in (["plot", "fig5", inputs["sweep.csv"]], ["plot", "fig2", inputs["stats.h5"]]):
        finished = eamsim(*arguments, "-o", tmp_path)
        assert (finished.code, finished.err) == (4, "error: eamsim plot needs the extra 'plot': pip install 'eamsim[plot]'\n")
    assert eamsim("plot", "table1", inputs["sweep.csv"], "-o", tmp_path).code == 0


def test_a_figure_that_cannot_be_saved_leaves_nothing(tmp_path, monkeypatch):
    figure = figures.new_figure(1, 1)

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(
        BadFile, match=rf"^{tmp_path}/fig.png: cannot be written \(No space left on device\); free some space, or choose another path"
    ):
        figures.save(figure, tmp_path, "fig")
    assert list(tmp_path.iterdir()) == []
