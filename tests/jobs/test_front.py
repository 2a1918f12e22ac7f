"""The table of a budget search: read as it was written, refused where it is damaged."""

import dataclasses

import pytest

from eamsim.errors import BadFile
from eamsim.jobs.search.budget import BudgetTrial, mark
from eamsim.jobs.search.front import read_front, write_front

FRONT_HEADER = ",".join(field.name for field in dataclasses.fields(BudgetTrial))
FRONTS = {
    "column": ("granularity,tau,macs_saved\nrow,1,1\n", r"expected the columns granularity,tau,.*,removed and at least one row, got gran"),
    "empty": ("", "expected the columns .* got  and 0 rows; make the table again"),
    "no rows": (
        "granularity,tau,macs_saved,top1,images,loss_change,pareto,chosen,removed\n",
        "expected .*, got granularity,.*,removed and 0 rows",
    ),
    "number": (",0.1,x,0.5,9,0,true,false,0", "row 1: expected granularity, tau, .*, got row,0.1,x,0.5"),
    "flag": (",0.1,0.1,0.5,9,0,yes,false,0", "row 1: expected granularity, tau, .*, got row,0.1"),
    "short": (",0.1", "row 1: expected granularity, tau, .*, got row,0.1; make the table again"),
    "range": (",0.1,1.5,0.5,9,0,true,false,0", "row 1: expected fractions from 0 to 1, got macs_saved 1.5, top1 0.5"),
    "negative": (",0.1,-0.5,0.5,9,0,true,false,0", "row 1: expected fractions from 0 to 1, got macs_saved -0.5, top1 0.5"),
    "nan": (
        ",0.1,nan,0.5,9,0,true,false,0",
        "row 1: expected granularity, tau, macs_saved, top1, images, loss_change, pareto, chosen, removed, got row,0.1,na",
    ),
}


@pytest.mark.parametrize("case", FRONTS)
def test_a_front_that_cannot_be_read_is_refused(tmp_path, case):
    text, message = FRONTS[case]
    path = tmp_path / "front.csv"
    path.write_text(f"{FRONT_HEADER}\nrow{text}" if text.startswith(",") else text)

    with pytest.raises(BadFile, match=rf"^{path}: {message}"):
        read_front(path)


def test_a_front_is_read_as_it_was_written(tmp_path):
    trials = mark(
        [
            BudgetTrial("none", 0, 0, 0.8, 300, 0),
            BudgetTrial("row", 0.1, 0.02, 0.7, 300, 0.1),
            BudgetTrial("head", 0.2, 0.03, 0.75, 300, 0.1),
        ],
        2,
    )
    write_front(tmp_path / "front.csv", trials)

    assert read_front(tmp_path / "front.csv") == trials
