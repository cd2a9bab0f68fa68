from __future__ import annotations

from collections.abc import Callable

import pytest
from tiny_llama import Checkpoint

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.candidates import candidates
from minigpt_edge_export.gguf.quantize import expected_types
from minigpt_edge_export.targets import list_targets, parse_target
from minigpt_edge_runtime.errors import UsageError

WIDE = {"hidden_size": 256, "head_dim": 64}


def test_names() -> None:
    assert parse_target("gguf-q4").types[:2] == ("q4_0", "iq4_nl")
    assert not parse_target("gguf-q4").exact
    assert parse_target("GGUF-IQ4_NL").types == ("iq4_nl",)
    assert not parse_target("gguf-bf16").quantized
    names = [target.name for target in list_targets()]
    assert len(names) == len(set(names))
    families = ["gguf-q8", "gguf-q6", "gguf-q5", "gguf-q4", "gguf-q3", "gguf-q2"]
    assert names[:6] == families
    assert [parse_target(name).name for name in names] == names


def test_unknown_target_lists_the_known() -> None:
    with pytest.raises(UsageError, match="'gguf-q7'") as caught:
        parse_target("gguf-q7")
    assert "gguf-q4_k_m" in (caught.value.hint or "")


def test_exact_targets_have_one_candidate(equal: Checkpoint) -> None:
    decoder = read_checkpoint(equal.path)
    for name in ("gguf-q4_k_m", "gguf-f16", "gguf-q8"):
        assert candidates(parse_target(name), decoder) == list(parse_target(name).types)


def test_widths_decide_what_is_worth_trying(make: Callable[..., Checkpoint], equal: Checkpoint) -> None:
    narrow = read_checkpoint(equal.path)  # rows of 64 and 96: no 256-blocks at all
    wide = read_checkpoint(make([(512, 4, 2), (512, 4, 2)], **WIDE).path)
    q4 = parse_target("gguf-q4")
    assert candidates(q4, narrow) == ["q4_0", "iq4_nl", "q4_1"]
    assert candidates(q4, wide) == list(q4.types)
    q3 = candidates(parse_target("gguf-q3"), narrow)
    assert len(q3) == 1
    blocks = {kind for name, kind in expected_types(narrow, q3[0]).items() if name.endswith("ffn_up.weight")}
    assert blocks <= {"Q4_0", "IQ4_NL"}


def test_types_that_come_out_the_same_are_tried_once(make: Callable[..., Checkpoint]) -> None:
    decoder = read_checkpoint(make([(512, 4, 2), (512, 4, 2)], **WIDE).path)
    for name in ("gguf-q4", "gguf-q3", "gguf-q2"):
        plans = [expected_types(decoder, kind) for kind in candidates(parse_target(name), decoder)]
        assert len(plans) == len({tuple(sorted(plan.items())) for plan in plans}) > 1


def test_without_importance_matrix(make: Callable[..., Checkpoint]) -> None:
    decoder = read_checkpoint(make([(512, 4, 2), (512, 4, 2)], **WIDE).path)
    assert candidates(parse_target("gguf-q2"), decoder, imatrix=False) == ["q2_k"]
