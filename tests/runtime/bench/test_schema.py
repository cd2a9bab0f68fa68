from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from latency_reports import make_report, without_optional_facts, write_reports

from minigpt_edge_runtime.bench.report import read_report
from minigpt_edge_runtime.bench.schema import check, load_schema
from minigpt_edge_runtime.errors import EdgeError

SCHEMA = load_schema("latency-report-1.json")
REPLACEMENTS = [None, True, 0, 1, -1, 2.0, 0.5, "", "x", [], [0], ["x"], {}, {"p50": 1}, "onnx", "a" * 64]
KEYWORDS = {
    "type": ["array", "null"],
    "required": ["a"],
    "properties": {"a": {"type": "integer", "minimum": 1}, "b": {"enum": [1, None, "x"]}},
    "additionalProperties": {"exclusiveMinimum": 0},
    "items": {"$ref": "#/$defs/one"},
    "minItems": 2,
    "$defs": {"one": {"const": True}, "two": {"pattern": "^x"}},
}


def agrees(value: Any, schema: dict[str, Any]) -> bool:
    """Whether `value` is valid, which both validators must say."""
    expected = jsonschema.Draft202012Validator(schema).is_valid(value)
    try:
        check(value, schema, "it")
    except EdgeError as error:
        assert not expected, error.message
        assert error.message.startswith("it is damaged: $")
    else:
        assert expected, value
    return expected


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a JSON value, of long lists only the first two items."""
    yield at
    items = (
        value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    )
    for key, one in items:
        yield from places(one, (*at, key))


def test_the_schema_is_one_and_reports_are_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert agrees(make_report(), SCHEMA)
    assert agrees(without_optional_facts(make_report()), SCHEMA)


def test_both_validators_agree_on_every_change_of_a_report() -> None:
    report = make_report(repetitions=2, prompt_lengths=(16,), depths=(0, 16), n_gen=2)
    report["quality"]["per_window"] = report["quality"]["per_window"][:2]
    chance, said = random.Random(0), []
    for path in places(report):
        if not path:
            continue
        for change in ["delete", *chance.sample(REPLACEMENTS, 5)]:
            changed = copy.deepcopy(report)
            holder = changed
            for key in path[:-1]:
                holder = holder[key]
            if change == "delete":
                del holder[path[-1]]
            else:
                holder[path[-1]] = change
            said.append(agrees(changed, SCHEMA))
    assert len(said) > 1000 and 0.1 < sum(said) / len(said) < 0.9


@pytest.mark.parametrize(
    "value", [*REPLACEMENTS, [True, True], [True, 1], {"a": 1, "b": 1}, {"a": 1, "b": True}]
)
@pytest.mark.parametrize("left_out", [(), ("type",), ("type", "items"), ("type", "required", "minItems")])
def test_each_keyword_means_what_it_means(value: Any, left_out: tuple[str, ...]) -> None:
    agrees(value, {key: rule for key, rule in KEYWORDS.items() if key not in left_out})
    for more in (1, 1.0, True, "1", "x", None, 0, -0.5):
        agrees({"a": value, "b": more, "c": more}, {**KEYWORDS, "type": "object"})
        agrees(more, {"$ref": "#/$defs/two", "$defs": KEYWORDS["$defs"]})


def test_a_keyword_that_is_not_known_is_a_bug() -> None:
    with pytest.raises(ValueError, match=r"maxItems.*\$\.a"):
        check({"a": 1}, {"properties": {"a": {"maxItems": 1}}}, "it")


def test_a_report_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    good = make_report()
    (path,) = write_reports(tmp_path, r=good)
    assert read_report(path) == good
    damaged = copy.deepcopy(good)
    damaged["decode"][1]["samples_ns"][2] = "fast"
    bad = {
        "has schema version 2, known is 1": {**good, "schema_version": 2},
        "is not a latency report": {"kind": "speed"},
        r"r.json is damaged: \$.decode\[1\].samples_ns\[2\] is \"fast\", not integer": damaged,
        r"\$ has no 'summary'": {key: value for key, value in good.items() if key != "summary"},
        r"\$.prefill has 0 items, not 1 or more": {**good, "prefill": []},
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
