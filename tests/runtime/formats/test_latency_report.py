"""Latency reports as they are read, and their schema."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import jsonschema
import pytest
from latency_reports import make_report, without_optional_facts, write_reports

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.latency_report import check, load_schema, read_report


@pytest.mark.parametrize("validator", [True, False])
def test_the_schema_is_one_and_reports_are_valid(validator: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonschema.Draft202012Validator.check_schema(load_schema())
    if not validator:
        monkeypatch.setitem(sys.modules, "jsonschema", None)
    for report in (make_report(), without_optional_facts(make_report())):
        check(report, "it", "")


def test_every_part_that_is_required_is_missed() -> None:
    for part in load_schema()["required"]:
        report = {key: value for key, value in make_report().items() if key != part}
        with pytest.raises(EdgeError, match=rf"it is damaged: \$: '{part}' is a required property"):
            check(report, "it", "")


def test_a_report_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    good = make_report()
    (path,) = write_reports(tmp_path, r=good)
    assert read_report(path) == good
    damaged = copy.deepcopy(good)
    damaged["decode"][1]["samples_ns"][2] = "fast"
    bad = {
        "has schema version 2, known is 1": {**good, "schema_version": 2},
        "is not a latency report": {"kind": "speed"},
        r"r.json is damaged: \$.decode\[1\].samples_ns\[2\]: 'fast' is not of type 'integer'": damaged,
        r"\$: 'summary' is a required property": {
            key: value for key, value in good.items() if key != "summary"
        },
        r"\$.prefill: \[\] should be non-empty": {**good, "prefill": []},
    }
    for message, report in bad.items():
        (path,) = write_reports(tmp_path, r=report)
        with pytest.raises(EdgeError, match=message) as caught:
            read_report(path)
        assert caught.value.hint
    path.write_text("{")
    with pytest.raises(EdgeError, match="not valid JSON"):
        read_report(path)
    with pytest.raises(EdgeError, match="does not exist"):
        read_report(tmp_path / "none.json")
