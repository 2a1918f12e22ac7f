import csv
import io
import re
from dataclasses import replace

import pytest

from eamsim.errors import BadFile, UserError
from eamsim.jobs.sweep_table import COLUMNS, Row, read_sweep, write_sweep

BASELINE = Row("local-dir:a,b", "baseline", "float", "", "", "", "", None, 0.0, 355, 0.98, 1.0)
FLOAT_MEANS = Row("net", "eam-fp32", "fakequant", "paper", "tile:16x8", "model", "output", None, 0.1, 3, 1 / 3, 2 / 3)
DRAWN = Row("net", "random-4bits", "engine", "renormalised", "weight", "head", "random", 2, 0.3, 5000, 0.7716, 0.985)
ROWS = [BASELINE, FLOAT_MEANS, DRAWN]


@pytest.fixture
def path(tmp_path):
    write_sweep(tmp_path / "sweep.csv", ROWS)
    return tmp_path / "sweep.csv"


def test_rows_come_back_and_equal_rows_make_equal_bytes(path):
    assert read_sweep(path) == ROWS
    content = path.read_bytes()
    write_sweep(path, read_sweep(path))
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_swins_rows_have_tau_with_the_excluded_pairs_too(tmp_path):
    rows = [replace(BASELINE, tau_with_excluded=0.1), DRAWN]
    write_sweep(tmp_path / "sweep.csv", rows)

    assert read_sweep(tmp_path / "sweep.csv") == rows
    assert [line.rpartition(",")[2] for line in (tmp_path / "sweep.csv").read_text().splitlines()] == ["tau_with_excluded", "0.1", ""]
    for wrong in (0.0, 1.1):
        with pytest.raises(UserError, match=f"tau_with_excluded: expected more than tau, at most 1, got {wrong}"):
            replace(BASELINE, tau_with_excluded=wrong)


def test_the_text_is_plain(path):
    assert path.read_text().splitlines() == [
        "model,variant,runner,softmax,granularity,scope,order,seed,tau,images,top1,top5",
        '"local-dir:a,b",baseline,float,,,,,,0.0,355,0.98,1.0',
        "net,eam-fp32,fakequant,paper,tile:16x8,model,output,,0.1,3,0.3333333333333333,0.6666666666666666",
        "net,random-4bits,engine,renormalised,weight,head,random,2,0.3,5000,0.7716,0.985",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "eam-8bits"}, "variant: must be one of eam-fp32, eam-4bits, random-4bits, baseline, got 'eam-8bits'"),
        ({"runner": "golden"}, "runner: must be one of float, fakequant, engine, got 'golden'"),
        ({"runner": "float"}, "runner: random-4bits cannot run as float"),
        ({"variant": "eam-fp32", "order": "entropy", "seed": ""}, "runner: eam-fp32 cannot run as engine"),
        ({"softmax": ""}, "softmax: must be one of paper, renormalised, got ''"),
        ({"granularity": ""}, "granularity: must be weight, row"),
        ({"scope": ""}, "random-4bits: expected a scope and an order, got '' and 'random'"),
        ({"scope": "block"}, "scope: must be one of head, layer, model"),
        ({"order": "entropy"}, "order: random and a seed belong to the variant random-4bits alone, got 'entropy'"),
        ({"seed": ""}, "order: random and a seed belong"),
        ({"seed": "-1"}, "seed: expected an integer of at least 0"),
        ({"seed": "1.5"}, "invalid literal"),
        ({"tau": "1.1"}, r"tau: must be a fraction in \[0, 1\]"),
        ({"tau": "nan"}, r"tau: must be a fraction in \[0, 1\]"),
        ({"images": "0"}, "accuracy: expected 0 <= top1 <= top5 <= 1 of 1 image or more"),
        ({"top1": "0.99"}, "accuracy: expected 0 <= top1 <= top5 <= 1"),
        ({"top5": "77"}, "accuracy: expected 0 <= top1 <= top5 <= 1"),
        ({"top1": "nan"}, "accuracy: expected 0 <= top1 <= top5 <= 1"),
        ({"top1": "many"}, "could not convert"),
        ({"variant": "baseline", "softmax": ""}, "baseline: freezes nothing"),
    ],
)
def test_a_row_that_means_nothing_is_refused(path, change, message):
    header, *lines = path.read_text().splitlines()
    fields = dict(zip(COLUMNS, next(csv.reader([lines[2]])), strict=True)) | change
    text = io.StringIO()
    csv.writer(text).writerow(fields.values())
    path.write_text("\n".join([header, *lines[:2], text.getvalue()]))

    with pytest.raises(BadFile, match=f"{re.escape(str(path))}: row 3: {message}.*; make the table again with `eamsim sweep --resume`"):
        read_sweep(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"expected the columns model,variant,.*, got ; make it with `eamsim sweep`"),
        (b"tau,top1\n0.1,0.5\n", r"expected the columns model,variant,.*, got tau,top1"),
        (b"\xff\xfe", r"not a readable table of a sweep \(.*decode"),
        (b'"model', r"not a readable table of a sweep \("),
        (",".join(COLUMNS).encode() + b"\nnet,baseline\n", r"row 1: expected 12 fields, got 2"),
    ],
)
def test_a_file_that_is_no_table_is_refused(path, content, message):
    path.write_bytes(content)

    with pytest.raises(BadFile, match=message):
        read_sweep(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadFile, match=r"none\.csv: not a readable table of a sweep \(.*No such file"):
        read_sweep(tmp_path / "none.csv")


def test_a_table_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(BadFile, match=r"none/sweep\.csv: cannot be written \(No such file or directory\)"):
        write_sweep(tmp_path / "none" / "sweep.csv", ROWS)


def test_rows_are_checked_where_they_are_made():
    with pytest.raises(UserError, match="baseline: freezes nothing"):
        replace(BASELINE, tau=0.1)
