"""Bundles, model files and checkpoints as a model of lm-evaluation-harness.

    python -m minigpt_edge.evaluation.lm_eval_model --model minigpt-edge \\
        --model_args path=BUNDLE --tasks boolq

takes lm_eval's own options; in Python, importing this module registers the model "minigpt-edge".
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

from minigpt_edge.evaluation.subject import subject_of
from minigpt_edge_runtime.click_group import show_error
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.scoring.choices import encode_pair, score_pairs
from minigpt_edge_runtime.scoring.likelihood import token_nll

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:  # it is an extra
    missing = EdgeError(
        f"lm-evaluation-harness is not installed ({error})", 'pip install "minigpt-edge[lm-eval]"'
    )
    if __name__ != "__main__":
        raise missing from error
    show_error(missing)
    sys.exit(missing.exit_code)


@register_model("minigpt-edge")
class EdgeModel(LM):
    """Every text is scored from the token that documents start with, as the model was trained.

    Args:
        path: a bundle, a .gguf or .onnx file, or a checkpoint directory.
        file: which of a bundle's model files.
        threads: CPU threads.
    """

    def __init__(self, path: str, file: str | None = None, threads: int | str = 1, **_: Any) -> None:
        super().__init__()
        subject = subject_of(Path(path), file)
        self._stack = ExitStack()
        self.engine = self._stack.enter_context(subject.open(int(threads)))
        self.start = self.engine.document_start(subject.document_start)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood in nats, and whether greedy decoding would give the continuation."""
        from tqdm import tqdm

        questions = [
            [encode_pair(self.engine, self.start, *request.args) for request in group]
            for _, group in groupby(requests, lambda request: (request.task_name, request.doc_id))
        ]
        scores = score_pairs(self.engine, questions)
        progress = tqdm(scores, total=len(questions), disable=disable_tqdm, desc="questions")
        return [scored for question in progress for scored in question]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of whole texts, in windows that do not overlap."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        found = []
        for request in requests:
            tokens = self.engine.tokenize(request.args[0])
            windows = get_rolling_token_windows(tokens, self.start, self.engine.context_length - 1, 1)
            pairs = (make_disjoint_window(window) for window in windows)
            nll = (token_nll(self.engine, [*before, *after], len(before)).sum() for before, after in pairs)
            found.append(-sum(map(float, nll)))
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy text up to a stop string."""
        from minigpt_edge_runtime.generate.generate import Generation, Session
        from minigpt_edge_runtime.generate.sampling import Sampling

        session, found = Session(self.engine), []
        for request in requests:
            prompt, settings = request.args
            until = settings.get("until") or []
            stop = [until] if isinstance(until, str) else list(until)
            longest = int(settings.get("max_gen_toks", 256))
            room = self.engine.context_length - longest
            if room < 1:
                raise EdgeError(
                    f"{longest} new tokens leave no room for a prompt in a context of "
                    f"{self.engine.context_length}",
                    "ask for fewer: --gen_kwargs max_gen_toks=N",
                )
            tokens = [self.start, *self.engine.tokenize(prompt)][-room:]
            sampling = Sampling(temperature=0, repeat_penalty=1.0)
            found.append("".join(Generation(session, tokens, sampling, longest, stop)))
        return found


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except EdgeError as error:
        show_error(error)
        sys.exit(error.exit_code)
