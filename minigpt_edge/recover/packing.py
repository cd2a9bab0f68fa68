"""Documents to training sequences: one document-start token before each, concatenated, cut to length."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from minigpt_edge.models.forward import encode
from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

DOCUMENTS_AT_ONCE = 64


def pack(
    texts: list[str], tokenizer: Tokenizer, document_start: str, *, length: int, count: int, seed: int
) -> np.ndarray:
    """`count` sequences of `length` + 1 token ids (int32), the last id of each being only predicted.

    Every pass over the texts has an order of its own, given by the seed, and its sequences are shuffled;
    texts that are not needed are not tokenized.

    Raises:
        EdgeError: the texts have fewer than `length` + 1 tokens in all.
    """
    import numpy as np

    sequences: list[np.ndarray] = []
    epoch = 0
    while len(sequences) < count:
        rng = random.Random(f"{seed}:{epoch}")
        order = rng.sample(range(len(texts)), len(texts))
        shuffled = [texts[i] for i in order]
        passed = list(islice(_sequences(shuffled, tokenizer, document_start, length), count - len(sequences)))
        if not passed:
            raise EdgeError(
                f"the training text has fewer than the {length + 1} tokens of one training sequence",
                "add text to the corpus",
            )
        rng.shuffle(passed)
        sequences += passed
        epoch += 1
    return np.stack(sequences)


def _sequences(
    texts: list[str], tokenizer: Tokenizer, document_start: str, length: int
) -> Iterator[np.ndarray]:
    import numpy as np

    rest = np.empty(0, np.int32)
    for first in range(0, len(texts), DOCUMENTS_AT_ONCE):
        ids = encode(tokenizer, document_start, texts[first : first + DOCUMENTS_AT_ONCE])
        rest = np.concatenate([rest, *(np.asarray(i, np.int32) for i in ids)])
        while len(rest) > length:
            yield rest[: length + 1]
            rest = rest[length:]
