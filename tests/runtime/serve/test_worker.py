"""The worker's thread, one request after another."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, closing
from pathlib import Path

from tiny_gguf import make_gguf
from tokenizers import Tokenizer

from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.generate.generate import Generation
from minigpt_edge_runtime.generate.sampling import Sampling
from minigpt_edge_runtime.serve.worker import Worker


async def heard(worker: Worker, generations: list[Generation], most: int = 1000) -> list[str]:
    texts = [""] * len(generations)
    async with aclosing(worker.pieces(generations)) as pieces:
        async for index, piece in pieces:
            texts[index] += piece or ""
            most -= 1
            if not most:
                break
    return texts


def test_requests_do_not_take_turns_within_their_choices(either: Path) -> None:
    """Another prompt between two choices would empty the cache, and so change a seed's second answer."""
    with open_engine(either, 200, 1) as engine, closing(Worker(engine, 2, 60)) as worker:

        def choices(prompt: list[int]) -> list[Generation]:
            return [Generation(worker.session, prompt, Sampling(seed=seed), 5) for seed in range(3)]

        async def together(*requests: list[Generation]) -> list[list[str]]:
            return await asyncio.gather(*[heard(worker, request) for request in requests])

        requests = [choices([5, 6, 7, 8, 9]), choices([9, 8, 7, 6, 5])]
        texts = asyncio.run(together(*requests))
        assert [[one.cached_tokens for one in request] for request in requests] == [[0, 4, 4]] * 2
        assert [asyncio.run(heard(worker, choices(list(one[0].prompt)))) for one in requests] == texts


def test_who_leaves_cancels_all_choices(tmp_path: Path, tokenizer: Tokenizer) -> None:
    endless = make_gguf(tmp_path / "endless.gguf", tokenizer, chain={50: 50})
    with open_engine(endless, 1000, 1) as engine, closing(Worker(engine, 2, 60)) as worker:
        greedy = Sampling(temperature=0, repeat_penalty=1)
        generations = [Generation(worker.session, [50], greedy, 900) for _ in range(3)]
        asyncio.run(heard(worker, generations, most=2))
        assert generations[0].tokens < 900 and [one.tokens for one in generations[1:]] == [0, 0]
        assert [one.finish_reason for one in generations] == ["cancelled"] * 3
