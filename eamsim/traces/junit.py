"""A comparison as JUnit, for CI."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

from eamsim.files.container import written
from eamsim.traces.compare import Report, TapDifference
from eamsim.traces.first import First


def write_junit(path: Path, name: str, report: Report, first: First | None) -> None:
    """A test case for each tap: failed where it differs or is required and missing, skipped where one side alone has it.

    BadFile where it cannot be written.
    """
    failed = {each.tap: text_of(each) for each in report.differing}
    failed |= dict.fromkeys(report.required_missing, "required, and not compared: not on both sides")
    skipped = dict.fromkeys(report.only_expected, "not compared: only in expected")
    skipped |= dict.fromkeys(report.only_found, "not compared: only in found")
    skipped = {tap: message for tap, message in skipped.items() if tap not in failed}
    taps = list(dict.fromkeys([*report.names, *failed, *skipped]))
    counts = {"tests": len(taps), "failures": len(failed), "skipped": len(skipped)}
    suite = ElementTree.Element("testsuite", {"name": name, **{key: str(count) for key, count in counts.items()}})
    for tap in taps:
        case = ElementTree.SubElement(suite, "testcase", classname="eamsim.trace.diff", name=tap)
        if tap in skipped:
            ElementTree.SubElement(case, "skipped", message=skipped[tap])
        if tap in failed:
            failure = ElementTree.SubElement(case, "failure", message=failed[tap])
            if first is not None and tap == first.tap:
                failure.text = "\n".join(f"{key}: {value}" for key, value in asdict(first).items())
    with written(path) as temporary:
        ElementTree.ElementTree(suite).write(temporary, encoding="utf-8", xml_declaration=True)


def text_of(each: TapDifference) -> str:
    if each.shapes is not None:
        return f"expected the shape {list(each.shapes[0])}, found {list(each.shapes[1])}"
    return f"{each.elements} of {each.of} elements differ, in images {each.images}"
