"""The model of lm-evaluation-harness says in one message what it can't do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from finetune_helpers import make_checkpoint

from minigpt_edge_runtime.errors import EdgeError

MODULE = "minigpt_edge.evaluation.lm_eval_model"


def test_without_the_extra_the_command_says_how_to_get_it() -> None:
    code = (
        f"import runpy, sys; sys.modules['lm_eval'] = None\nrunpy.run_module({MODULE!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "is not installed" in done.stderr and "minigpt-edge[lm-eval]" in done.stderr


def test_an_answer_as_long_as_the_context_is_refused(tmp_path: Path) -> None:
    from minigpt_edge.evaluation.lm_eval_model import EdgeModel

    model = EdgeModel(str(make_checkpoint(tmp_path / "model")))
    longest = model.engine.context_length
    request = SimpleNamespace(args=("the licence grants", {"max_gen_toks": longest}))
    with pytest.raises(EdgeError, match="no room for a prompt"):
        model.generate_until([request], disable_tqdm=True)
