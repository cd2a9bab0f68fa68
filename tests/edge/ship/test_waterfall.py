"""The waterfall's steps from what stages measured: which there are, and which are one."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from report_helpers import full_report, report_of

from minigpt_edge.report.tables import tables
from minigpt_edge.ship.waterfall import waterfall


def finished(pruned: dict[str, Any], *, recovered: bool = True, kind: str = "iq4_nl") -> Any:
    """Stages of a build with these metrics of pruning, over those of one that cut everything."""

    def stage(**metrics: Any) -> Any:
        return SimpleNamespace(metrics=metrics)

    plain = {
        "vocabulary": [100, 60],
        "widths": [64, [32, 64]],
        "kv_groups": [[3, 2], [3, 1]],
        "between": {"vocabulary": {"bits_per_byte": 1.1}, "neurons": {"bits_per_byte": 1.3}},
        "quality": {"bits_per_byte": 1.4},
    }
    models = SimpleNamespace(
        dense=stage(bits_per_byte=1.0, windows=7),
        pruned=stage(**{**plain, **pruned}),
        recovered=stage(after={"bits_per_byte": 0.8}) if recovered else None,
    )
    file = SimpleNamespace(made=stage(type=kind), measured=stage(validation={"bits_per_byte": 0.85}))
    return SimpleNamespace(models=models, files=[file])


WHOLE = {"widths": [64, [64, 64]], "kv_groups": [[3, 2], [3, 2]]}


@pytest.mark.parametrize(
    ("pruned", "steps", "together"),
    [
        ({}, {"vocabulary": 1.1, "neurons": 1.3, "KV groups": 1.4}, ()),
        ({"kv_groups": [3, [3, 3]]}, {"vocabulary": 1.1, "neurons": 1.4}, ()),
        (WHOLE, {"vocabulary": 1.4}, ()),
        ({**WHOLE, "vocabulary": [100, 100], "between": {}}, {"pruning": 1.4}, ()),  # masks
        (
            {"removed_blocks": [1], "widths": [64, [64]], "kv_groups": [3, [3]]},
            {"vocabulary": 1.1, "blocks": 1.4},
            (),
        ),
        (
            {"between": {}},  # on disk
            {"vocabulary, neurons and KV groups": 1.4},
            ("vocabulary", "neurons", "KV groups"),
        ),
        (
            {"quality": {"bits_per_byte": 1.2}},  # the refit counts on the cut attention
            {"vocabulary": 1.1, "neurons and KV groups": 1.2},
            ("neurons", "KV groups"),
        ),
    ],
)
def test_steps_are_what_was_removed(
    pruned: dict[str, Any], steps: dict[str, float], together: tuple[str, ...]
) -> None:
    found = waterfall(finished(pruned))
    expected = {"dense": 1.0, **steps, "recovery": 0.8, "quantization": 0.85}
    assert {step.name: step.bits_per_byte for step in found.steps} == expected
    assert (found.together, found.windows) == (together, 7)
    assert 1.0 + sum(change for _, change in found.changes()) == pytest.approx(0.85)
    report = report_of(full_report()).model_copy(update={"waterfall": found})
    (note,) = [table.note for table in tables(report) if table.key == "waterfall"]
    assert ("one step" in note) == bool(together)


def test_a_build_without_recovery_or_quantization_has_no_such_step() -> None:
    found = waterfall(finished({}, recovered=False, kind="f16"))
    assert [step.name for step in found.steps][-2:] == ["KV groups", "export"]


def test_what_pruning_expected_stands_beside_what_it_cost() -> None:
    estimated = {
        "before_recovery": {"tokens": 0.2, "neurons": 0.4, "groups": 0.1},
        "base_tokens_per_byte": 0.25,
    }
    found = waterfall(finished({"estimated": estimated}))
    bits = 0.25 / math.log(2)
    expected = {step.name: step.estimated for step in found.steps}
    assert expected == {
        "dense": None,
        "vocabulary": pytest.approx(0.2 * bits),
        "neurons": pytest.approx(0.4 * bits),
        "KV groups": pytest.approx(0.1 * bits),
        "recovery": None,
        "quantization": None,
    }
    tied = waterfall(finished({"estimated": estimated, "quality": {"bits_per_byte": 1.2}}))
    (both,) = [step.estimated for step in tied.steps if step.name == "neurons and KV groups"]
    assert both == pytest.approx(0.5 * bits)
    report = report_of(full_report()).model_copy(update={"waterfall": found})
    (table,) = [table for table in tables(report) if table.key == "waterfall"]
    assert table.columns[3] == "expected change"
    assert [row[3] for row in table.rows] == ["–", "+0.072", "+0.144", "+0.036", "–", "–"]
