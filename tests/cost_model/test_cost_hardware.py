"""Hardware descriptions: presets, and every fault of a file at once with its line and field."""

from pathlib import Path

import pytest

from cost_model.chip.hardware import PRESETS, Array, Simd, load, parse, preset_names
from cost_model.chip.technology import Energy
from eamsim.errors import BadFile, UserError

SMALL = (PRESETS / "small-npu.yaml").read_text(encoding="utf-8")


def test_three_kinds_of_chips_ship():
    assert preset_names() == ["large-npu", "simd-mcu", "small-npu"]
    chips = {name: load(name) for name in preset_names()}
    assert all(chip.name == name for name, chip in chips.items())
    assert isinstance(chips["small-npu"].compute, Array)
    assert isinstance(chips["simd-mcu"].compute, Simd)


@pytest.mark.parametrize("name", preset_names())
def test_every_energy_of_a_preset_spreads_and_has_a_source(name):
    chip = load(name)
    vector, levels = chip.vector, chip.memories.levels.values()
    compute = chip.compute.mac_pj if isinstance(chip.compute, Array) else chip.compute.step_pj
    figures = [compute, vector.multiply_pj, vector.simple_pj, vector.lookup_pj, *(memory.read_pj_per_bit for memory in levels)]
    for figure in figures:
        assert 0 < figure.low <= figure.nominal <= figure.high
        assert figure.low < figure.high
        assert figure.source


def test_a_file_is_read_like_a_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(SMALL.replace("name: small-npu", "name: mine"))
    assert load(str(path)).name == "mine"
    assert load(str(path)).compute == load("small-npu").compute


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def test_all_faults_at_once():
    faulty = SMALL.replace("rows: 16", "rows: 0").replace("frequency_mhz: 500", "frequency_mhz: fast\nfrequency_mhz: 500")
    faulty = (
        faulty.replace("    low: 0.07\n", "    low: 9\n", 1).replace("dataflow: os", "dataflow: xs").replace("    bytes: 1572864\n", "")
    )
    faulty = faulty.replace("  lanes: 32", "  lanes: 32\n  turbo: true")
    with pytest.raises(UserError) as caught:
        parse(faulty, "hw.yaml")
    lines = str(caught.value).splitlines()
    where = [line_of(faulty, part) for part in ("500", "rows: 0", "dataflow", "nominal: 0.15", "turbo", "sram:")]
    assert [int(line.split(":")[1]) for line in lines] == where
    assert lines == [
        f"hw.yaml:{where[0]}: frequency_mhz: given twice; keep one",
        f"hw.yaml:{where[1]}: compute.rows: input should be greater than or equal to 1, got '0'",
        f"hw.yaml:{where[2]}: compute.dataflow: input should be 'os', 'ws' or 'is', got 'xs'",
        f"hw.yaml:{where[3]}: compute.mac_pj.nominal: expected low <= nominal <= high, got 9.0 as low and 0.15",
        f"hw.yaml:{where[4]}: vector.turbo: no such field; leave it out",
        f"hw.yaml:{where[5]}: memories.sram.bytes: field required",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("skip: tile", "skip: pair\n  # any", None),
        ("dataflow: os\n  skip: tile", "dataflow: ws\n  skip: pair", "compute.skip: pair expects dataflow os"),
        ("holds: [weights, maps]", "holds: [weights]", "memories: exactly one memory holds maps, got 0"),
        ("holds: [weights, maps]", "holds: [weights, maps, activations]", "memories: sram, and no other memory, holds activations"),
        ("low: 0.07", "low: nan", "compute.mac_pj.low: input should be a finite number, got 'nan'"),
        ("kind: array", "kind: quantum", "compute.kind: expected array or simd, got 'quantum'"),
        ("kind: array", "", "compute.kind: expected array or simd"),
        (
            "frequency_mhz: 500",
            "frequency_mhz: 500e6",
            "frequency_mhz: expected a clock above 0 and up to 20,000 MHz, got 5e+08; 500e6 Hz are 500",
        ),
        ("frequency_mhz: 500", "frequency_mhz: 0", "frequency_mhz: expected a clock above 0"),
        ("high: 0.25", "high: 0.25e9", "compute.mac_pj.high: input should be less than or equal to 1000000, got '0.25e9'"),
        ("node_nm: 45", "node_nm: 45e-9", "compute.mac_pj.node_nm: input should be greater than or equal to 1"),
        ("columns: 16", "colums: 16", "compute.colums: no such field; did you mean columns?"),
        ("nominal: 0.15", "nominale: 0.1", "compute.mac_pj.nominale: no such field; did you mean nominal?"),
        ("bits_per_cycle: 512", "bits_per_cycles: 512", "memories.sram.bits_per_cycles: no such field; did you mean bits_per_cycle?"),
        ("frequency_mhz", "frequenzy_mhz", "frequenzy_mhz: no such field; did you mean frequency_mhz?"),
        ("  sram:", "  srams:", "memories.srams: no such field; did you mean sram?"),
        ("source: Horowitz", "source: ''\n    # Horowitz", "compute.mac_pj.source: string should have at least 1 character"),
        ("node_nm: 45", "node_nm: &n 45", None),
    ],
)
def test_one_fault(old, new, message):
    text = SMALL.replace(old, new, 1)
    assert text != SMALL
    if message is None:
        parse(text, "hw.yaml")
        return
    with pytest.raises(UserError, match=r"hw.yaml:[0-9]+: ") as caught:
        parse(text, "hw.yaml")
    assert message in str(caught.value)


def faults_of(text: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse(text, "hw.yaml")
    return sorted(line.split(": ", 1)[1] for line in str(caught.value).splitlines())


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("kind", ["quantum", "''", "[array]"])
def test_a_wrong_kind_hides_no_other_fault(name, kind):
    text = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    faulty = text.replace("left_bits: ", "left_bits: 9", 1).replace("  skip: ", "  skip: un", 1).replace("node_nm: 45", "node_nm: wide", 1)
    faulty = faulty.replace("lanes: ", "lanes: -", 1)
    own = "array" if "kind: array" in text else "simd"
    alone = faults_of(faulty)
    assert len(alone) >= 4
    found = faults_of(faulty.replace(f"kind: {own}", f"kind: {kind}"))
    assert [fault for fault in found if not fault.startswith("compute.kind: expected array or simd, got")] == alone
    assert len(found) == len(alone) + 1


def test_faulty_memories_hide_neither_places_nor_orders():
    faulty = SMALL.replace("bits_per_cycle: 512", "bits_per_cycle: 0").replace("holds: [weights, maps]", "holds: [weights]")
    faulty = faulty.replace("    low: 0.07\n", "    low: 9\n", 1).replace("node_nm: 45", "node_nm: wide", 1)
    assert faults_of(faulty.replace("dataflow: os\n  skip: tile", "dataflow: ws\n  skip: pair").replace("  rows: 16", "  rows: 0")) == [
        "compute.mac_pj.node_nm: input should be a valid number, unable to parse string as a number, got 'wide'",
        "compute.mac_pj.nominal: expected low <= nominal <= high, got 9.0 as low and 0.15",
        "compute.rows: input should be greater than or equal to 1, got '0'",
        "compute.skip: pair expects dataflow os, where a row of the array owns a query, got ws",
        "memories.sram.bits_per_cycle: input should be greater than or equal to 1, got '0'",
        "memories: exactly one memory holds maps, got 0",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "hw.yaml:1: expected the fields of a hardware description, got none"),
        ("- a", "hw.yaml:1: expected the fields of a hardware description, got none"),
        ("a: [1", "hw.yaml:1: expected YAML, got expected ',' or '\\]'"),
        ("a: 1\nb: *x", "expected every field in full, got an alias"),
        ("a: \x01", "hw.yaml: expected YAML, got unacceptable character #x0001"),
        ("a: 1\n---\nb: 2", "hw.yaml:2: expected YAML, got but found another document"),
        ("- " * 2000 + "a", "got endless nesting"),
        ("[" * 60_000, "expected at most 1000 brackets"),
    ],
)
def test_what_is_no_description(text, message):
    with pytest.raises(UserError, match=message):
        parse(text, "hw.yaml")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(BadFile, match=r"none\.yaml: cannot be read \(No such file or directory\)"):
        load(str(tmp_path / "none.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFile, match="expected UTF-8 text, got other bytes at 0"):
        load(str(tmp_path / "binary.yaml"))
    (tmp_path / "huge.yaml").write_bytes(b"#" * ((1 << 16) + 1))
    with pytest.raises(BadFile, match=r"cannot be read \([\d,]+ bytes, of at most 65,536\); give a hardware description"):
        load(str(tmp_path / "huge.yaml"))
    with pytest.raises(UserError, match=r"--hw: expected a .yaml file or one of large-npu, simd-mcu, small-npu, got 'tpu'"):
        load("tpu")


def test_maps_move_to_another_memory():
    moved = load("small-npu").with_maps_in("sram")
    assert moved.home == {"activations": "sram", "maps": "sram", "weights": "dram"}
    with pytest.raises(UserError, match="--maps: small-npu has sram, dram, got 'rom'"):
        load("small-npu").with_maps_in("rom")


def test_energies_keep_their_readings_apart():
    assert Energy(1, 2, 3) + Energy(1, 1, 1) * 2 - Energy(0, 0, 1) == Energy(3, 4, 4)


def test_presets_are_package_data():
    assert {path.name for path in Path(str(PRESETS)).iterdir()} >= {f"{name}.yaml" for name in preset_names()}
