"""SystemVerilog units equal the golden interpreter on exported vectors: with Icarus alone, and driven by cocotb."""

import json
import shutil
import subprocess
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import benches
import numpy as np
import pytest
from command_line import eamsim
from programs import Shape, operation, random_images, random_program

from eamsim import artifact, golden
from eamsim.constraints import Verified
from eamsim.inputs.images import Preprocessing
from eamsim.program import Attention, Datapath, Frozen, Gather, Gelu, InputQuant, LayerNorm, Linear, Raw, Requant, Softmax, Value

HERE = Path(__file__).parent
DIGITS = HERE.parents[1] / "eamsim/data/digits"
pytestmark = pytest.mark.skipif(shutil.which("iverilog") is None, reason="needs Icarus Verilog (Debian package iverilog)")


def export(folder: Path, program: Verified, images: np.ndarray) -> Path:
    """The vectors of all operations of a program on some images."""
    folder.mkdir()
    side = program.image.shape[0]
    preprocessing = asdict(Preprocessing(side, side, 1.0, "bicubic"))
    artifact.write(folder / "x.eam", program, {"preprocessing": preprocessing, "labels": None})
    np.savez(folder / "images.npz", images=images)
    options = ("--data", folder / "images.npz", "--images", len(images), "--operations", "*", "-o", folder / "vectors")
    done = eamsim("trace", "export", folder / "x.eam", *options)
    assert done.code == 0, done.err
    return folder / "vectors"


def corners(datapath: Datapath, softmax: Softmax) -> Verified:
    """Ties, both saturations, sigma = 0, all-equal rows, the largest shifts, a wholly frozen row: tokens are rows of 8 x 8 images.

    Whether they are reached is a test below."""
    rng = np.random.default_rng(3)
    image, rows, values = Value("image", (8, 8, 3), 8), Value("rows", (8, 24), 8), Value("values", (8, 24), 16, signed=True)
    identity = np.tile(np.arange(256, dtype=np.uint8), (3, 1))
    eye = {"weight": np.eye(24, dtype=np.uint8), "weight_bits": 2, "weight_zero": np.zeros(24, np.uint8), "x_zero": 0}
    raw = Raw(np.full(24, 256, np.int32), np.zeros(24, np.int32))
    shift = np.array([0, 1, 2, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 40, 61, 62], np.int32)
    ratio = {"multiplier": np.where(shift < 18, 1 << np.minimum(np.maximum(shift - 9, 0), 7), 65535).astype(np.int32), "shift": shift}
    weight = rng.integers(0, 16, (24, 16), dtype=np.int64).astype(np.uint8)
    weight[:, 0], weight[:, 1] = 0, 15
    dense = {
        "weight": weight,
        "weight_bits": 4,
        "weight_zero": np.full(16, 8, np.uint8),
        "x_zero": 128,
        "bias": np.arange(-8, 8, dtype=np.int32),
    }
    requant = Requant(**ratio, zero=np.arange(16, dtype=np.int32))
    levels = np.arange(127, -129, -1, dtype=np.int32)
    gelu = Gelu(**ratio, index_zero=30, index_bits=6, table=(np.arange(64) // 4).astype(np.uint8))
    gain = rng.integers(-4096, 4096, 24).astype(np.int32)
    norm = LayerNorm("values", Value("norm", (8, 24), 4), gain, np.full(24, 15 << 19, np.int64), shift=20, variance_offset=1)
    return Verified(
        "corners",
        image,
        (
            InputQuant("image", Value("input", (8, 8, 3), 8), identity),
            Gather("input", rows, np.arange(8, dtype=np.int32), granule=24),
            Linear("rows", values, **eye, bias=np.full(24, -128, np.int32), epilogue=raw),
            norm,
            Linear("rows", Value("requant", (8, 16), 4), **dense, epilogue=requant),
            replace(Linear("rows", Value("fitted", (8, 16), 4), **dense, epilogue=requant), x_zero=0, levels=levels),
            Linear("rows", Value("gelu", (8, 16), 4), **dense, epilogue=gelu),
            attention("flat", score_shift=62, softmax=softmax),
            attention("attn", score_shift=10, softmax=softmax),
        ),
        datapath,
    )


def attention(name: str, score_shift: int, softmax: Softmax) -> Attention:
    """Two heads of four values: a row wholly frozen, others in part."""
    rng = np.random.default_rng(4)
    mask = rng.random((1, 2, 8, 8)) < 0.3
    mask[0, 0, 2], mask[0, 1, 3] = True, False
    codes = np.where(mask, rng.integers(0, 16, mask.shape), 0).astype(np.uint8)
    frozen = Frozen(mask, codes, bits=4, row_log2=rng.integers(0, 600, mask.shape[:3]).astype(np.int32))
    return Attention(
        "rows", Value(name, (8, 8), 4), heads=2, windows=1, score_heads=(0, 1), q_zero=128, k_zero=127, v_zero=100,
        score_multiplier=40000, score_shift=score_shift, exp2=np.round(2.0 ** (15 - np.arange(256) / 256)).astype(np.int32), exp2_bits=15,
        log2=np.round(np.log2(1 + np.arange(256) / 256) * 256).astype(np.int32), log2_scale=-20, attention_bits=4,
        last_code_is_zero=True, softmax=softmax, multiplier_even=40000, multiplier_odd=28284, out_shift=28, out_zero=8, frozen=frozen,
    )  # fmt: skip


def corner_images() -> np.ndarray:
    images = np.random.default_rng(5).integers(0, 256, (3, 8, 24)).astype(np.uint8)
    images[:, 0], images[:, 1], images[:, 2], images[:, 3] = 0, 255, 128, np.tile([0, 255], 12)
    images[:, 4], images[:, 4, 5], images[:, 6] = 7, 8, images[:, 5]
    return images.reshape(3, 8, 8, 3)


CASES: list[tuple[Datapath, Softmax]] = [
    (Datapath("half_up", accumulator_bits=15, overflow="saturate"), "renormalised"),
    (Datapath("half_even", accumulator_bits=15, overflow="wrap"), "paper"),
    (Datapath("half_away"), "renormalised"),
    (Datapath("floor", accumulator_bits=48), "paper"),
]
RANDOM = [
    Shape(seed=11, head_dim=5, hidden=9, freeze="scattered", softmax="renormalised", extreme=True),
    Shape(
        seed=12,
        windows=2,
        side=8,
        prefix=0,
        pooled=True,
        biased=True,
        fitted=True,
        freeze="rows",
        frozen_bits=2,
        datapath=Datapath(rounding="half_even"),
    ),
    Shape(
        seed=13,
        attention_bits=3,
        frozen_bits=3,
        exponent_bits=5,
        gelu_index_bits=5,
        freeze="heads",
        softmax="renormalised",
        last_code_is_zero=True,
        datapath=Datapath(accumulator_bits=11, overflow="wrap"),
    ),
    Shape(seed=14, fitted=True, weight_bits=8, activation_bits=8, residual_bits=24, freeze="all", datapath=Datapath(rounding="half_away")),
]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """Folders of vectors: the digits model in full on one image, corners, random programs."""
    root = tmp_path_factory.mktemp("vectors")
    digits, images = artifact.read(DIGITS / "digits.eam")[0], np.load(DIGITS / "digits_test.npz")["images"]
    folders = {"digits": export(root / "digits", digits, images[:1])}
    for path, softmax in CASES:
        folders[path.rounding] = export(root / path.rounding, corners(path, softmax), corner_images())
    for shape in RANDOM:
        program = random_program(shape)
        folders[f"seed{shape.seed}"] = export(root / f"seed{shape.seed}", program, random_images(program, 2, 1))
    return folders


@pytest.mark.skipif(shutil.which("verilator") is None, reason="needs Verilator (Debian package verilator)")
@pytest.mark.parametrize("unit", ["dot_requant", "gelu_table", "layer_norm_row", "softmax_row", "av_row"])
def test_verilator_has_no_complaint(unit):
    done = subprocess.run(["verilator", "--lint-only", "-Wall", "eam_pkg.sv", f"{unit}.sv"], cwd=HERE, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def outputs(bench) -> int:
    p = bench.parameters
    match bench.unit:
        case "softmax_row":
            return p["IMAGES"] * p["WINDOWS"] * p["HEADS"] * p["TOKENS"] ** 2
        case "av_row":
            return p["IMAGES"] * p["WINDOWS"] * p["HEADS"] * p["TOKENS"]
    return p["ROWS"] * p["CHANNELS"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", *(path.rounding for path, _ in CASES), *(f"seed{shape.seed}" for shape in RANDOM)])
def test_units_equal_golden_without_python(vectors, name, tmp_path):
    compared = {}
    for bench in benches.benches(vectors[name]):
        done = benches.simulate(bench, vectors[name], tmp_path)
        assert (done.returncode, done.stdout) == (0, f"{bench.parameters['NAME']}: {outputs(bench)} outputs equal\n"), done.stderr
        compared[bench.unit] = compared.get(bench.unit, 0) + outputs(bench)
    assert compared.keys() == {"dot_requant", "gelu_table", "layer_norm_row", "softmax_row", "av_row"}
    assert name != "digits" or sum(compared.values()) > 10_000


@pytest.mark.parametrize(("datapath", "softmax"), CASES)
def test_corners_are_reached(datapath, softmax):
    program = corners(datapath, softmax)
    runs = [{} for _ in corner_images()]
    for image, taps in zip(corner_images(), runs, strict=True):
        golden.run(program, image, taps)
    tap = {name: np.stack([taps[name] for taps in runs]) for name in runs[0]}
    requant = operation(program, "requant", Linear).epilogue
    assert isinstance(requant, Requant)
    scaled, shift = tap["requant.acc"] * requant.multiplier.astype(np.int64), requant.shift.astype(np.int64)
    step = np.int64(1) << shift
    assert np.any((scaled % step == step // 2) & (shift > 0))  # ties
    assert shift.max() == 62
    level = (scaled >> shift) + requant.zero
    assert level.min() < -1  # both saturations of the output, however it is rounded
    assert level.max() > 16
    if datapath.overflow != "error":
        wide: dict[str, np.ndarray] = {}
        golden.run(corners(Datapath(datapath.rounding), softmax), corner_images()[0], wide)
        sums = [name for name in wide if name.endswith((".acc", ".scores", ".even", ".odd")) and name != "values.acc"]
        assert all(wide[name].min() < -(1 << 14) or wide[name].max() >= 1 << 14 for name in sums)
    assert np.any(tap["norm.variance"] == 1)  # sigma = 0: the offset alone
    assert np.any(np.ptp(tap["attn.scores"], axis=-1) == 0)  # a row of equal scores
    assert {0, 15} <= set(tap["attn.codes"].ravel().tolist())
    frozen = operation(program, "attn", Attention).frozen
    assert frozen is not None
    assert frozen.mask.all(axis=-1).any()


FAULTS = [
    ("dot_requant", "- int64'({1'b0, w_zero})", ""),
    ("dot_requant", "ROUNDING) +", "FLOOR) +"),
    ("dot_requant", "(64'sd1 <<< OUT_BITS) - 64'sd1", "64'sd255"),  # wraps instead of saturating
    ("dot_requant", "ACC_BITS, OVERFLOW)", "ACC_BITS, WRAP)"),
    ("dot_requant", "in_last ? 0 : running + beat", "running + beat"),
    ("dot_requant", "!out_valid || out_ready", "1"),  # deaf to back-pressure
    ("gelu_table", "+ 64'(INDEX_ZERO)", ""),
    ("dot_requant", "logic signed [7:0]", "logic [7:0]"),
    ("gelu_table", "rom[where]", "rom[index]"),
    ("gelu_table", "out_valid <= 1", "out_valid <= 0"),  # hangs
    ("layer_norm_row", "int64'(row[at]) - total", "int64'(row[at])"),
    ("layer_norm_row", "<= {2'b0, variance}", "< {2'b0, variance}"),
    ("layer_norm_row", "grown >= root", "grown > root"),
    ("layer_norm_row", "6'(SHIFT), ROUNDING", "6'(SHIFT), FLOOR"),
    ("softmax_row", "score > top", "score < top"),
    ("softmax_row", "fixed[at] ? codes[at] :", ""),
    ("softmax_row", "+ int64'({39'd0, mass})", ""),
    ("softmax_row", "LOG2_BITS) >> lead", "LOG2_BITS) >> (lead + 1)"),
    ("av_row", "- 64'(V_ZERO)", ""),
    ("av_row", "(LAST_CODE_IS_ZERO != 0", "(0"),
    ("av_row", "is_odd ? product", "is_odd ? -product"),
    ("av_row", "ACC_BITS, OVERFLOW)", "ACC_BITS, ERROR)"),
    ("av_row", "6'(OUT_SHIFT)", "6'(OUT_SHIFT - 1)"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("unit", "right", "wrong"), FAULTS)
def test_a_planted_fault_fails(vectors, unit, right, wrong, tmp_path):
    source = (HERE / f"{unit}.sv").read_text()
    assert right in source
    (tmp_path / f"{unit}.sv").write_text(source.replace(right, wrong))
    done = [
        benches.simulate(bench, vectors["half_up"], tmp_path, tmp_path / f"{unit}.sv")
        for bench in benches.benches(vectors["half_up"])
        if bench.unit == unit
    ]
    assert any(each.returncode != 0 and "FATAL" in each.stderr + each.stdout for each in done), done


@pytest.mark.slow
@pytest.mark.skipif(find_spec("cocotb") is None, reason="needs cocotb: pip install 'eamsim[rtl]'")
@pytest.mark.parametrize("unit", sorted({unit for unit, *_ in FAULTS}))
@pytest.mark.parametrize("name", ["digits", "half_even"])
def test_units_equal_golden_under_cocotb(vectors, name, unit, tmp_path):
    run_cocotb(vectors[name], unit, HERE / f"{unit}.sv", tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("cocotb") is None, reason="needs cocotb: pip install 'eamsim[rtl]'")
def test_a_planted_fault_fails_under_cocotb(vectors, tmp_path):
    wrong = tmp_path / "gelu_table.sv"
    wrong.write_text((HERE / wrong.name).read_text().replace("!out_valid || out_ready", "1"))
    with pytest.raises(SystemExit):
        run_cocotb(vectors["digits"], "gelu_table", wrong, tmp_path)
    assert "AssertionError: output" in (tmp_path / "test.log").read_text()


def run_cocotb(folder: Path, unit: str, source: Path, scratch: Path) -> None:
    """Compare the first operation of the folder that the unit can run, 400 outputs at most; SystemExit where they differ."""
    from cocotb_tools.check_results import get_results
    from cocotb_tools.runner import get_runner

    bench = next(bench for bench in benches.benches(folder) if bench.unit == unit)
    runner = get_runner("icarus")
    runner.build(
        sources=[HERE / "eam_pkg.sv", source],
        hdl_toplevel=unit,
        parameters=benches.unit_parameters(bench, folder),
        build_args=["-g2012"],
        build_dir=scratch,
        log_file=scratch / "build.log",
    )
    told = {"EAM_VECTORS": folder, "EAM_UNIT": unit, "EAM_PARAMETERS": json.dumps(bench.parameters), "EAM_OUTPUTS": 400}
    results = runner.test(
        test_module="cocotb_units",
        hdl_toplevel=unit,
        build_dir=scratch,
        test_dir=scratch,
        results_xml=str(scratch / "results.xml"),
        extra_env={key: str(value) for key, value in told.items()},
        log_file=scratch / "test.log",
    )
    assert get_results(results) == (1, 0)
