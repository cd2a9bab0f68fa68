"""Trims a BPE vocabulary, byte-level or SentencePiece: chooses which tokens are kept.

A token can only be made if every token on the way to it is there too. So what is kept is always closed:
a token is kept as long as a kept one is built from it. Bytes are never removed, so no text is ever lost.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

from minigpt_edge_export.gguf.pretokenizers import check_tokenizer
from minigpt_edge_export.gguf.sentencepiece import BYTES, SPACE, is_sentencepiece
from minigpt_edge_runtime.engines.text import open_tokenizer
from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

BATCH = 64  # documents encoded at once
# A word in three pieces instead of two costs so much of what the second piece cost. SmolLM2-135M, economics:
# 7.7 nats for two pieces, 10.7 for three, 23.2 for four (261, 50 and 11 occurrences).
FURTHER = 0.4


@dataclass(frozen=True)
class Vocabulary:
    """How the tokens of a BPE are built. Ids are those the `tokenizers` library gives.

    Attributes:
        ids: text of every token, added ones too, to its id.
        byte_symbols: ids of the byte symbols there are (some models lack bytes that UTF-8 hardly uses), or
            of SentencePiece's byte tokens and its space.
        added: ids of special and other added tokens, and of the unknown token if there is one.
        parts: token -> the two tokens of the last merge that BPE does to build it.
        pieces: token -> what its text becomes without it: its parts, what BPE makes of it otherwise, or its
            bytes.
        rank: token -> rank of its last merge.
    """

    ids: dict[str, int]
    byte_symbols: frozenset[int]
    added: frozenset[int]
    parts: dict[int, tuple[int, int]]
    pieces: dict[int, tuple[int, ...]]
    rank: dict[int, int]

    @property
    def rows(self) -> int:
        """Highest id + 1: the embedding may have more rows, which no text uses."""
        return max(self.ids.values()) + 1


def token_ids(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Token ids of each text, no special tokens put around it, int64."""
    import numpy as np

    iterator = iter(texts)
    while batch := list(islice(iterator, BATCH)):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            yield np.asarray(encoding.ids, dtype=np.int64)


def count_tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> np.ndarray:
    """How often each token occurs in the texts, no special tokens put around them: int64 [highest id + 1]."""
    import numpy as np

    rows = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    counts = np.zeros(rows, dtype=np.int64)
    for ids in token_ids(tokenizer, texts):
        counts += np.bincount(ids, minlength=rows)
    return counts


def read_merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of a tokenizer.json's model in order of rank, from either form ("a b" or ["a", "b"])."""
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    return [(left, right) for left, right in pairs]


def read_vocabulary(tokenizer_json: dict[str, Any]) -> Vocabulary:
    """How each token of a parsed tokenizer.json is built (about a second for 50,000 tokens).

    Raises:
        EdgeError: it is damaged, not a byte-level BPE, or gives two tokens one id.
    """
    check_tokenizer(tokenizer_json)
    tokenizer, model = open_tokenizer(tokenizer_json), tokenizer_json["model"]
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if len(set(ids.values())) != len(ids):
        raise EdgeError("tokenizer.json gives two tokens one id", "number its tokens without holes")
    added = set(tokenizer.get_added_tokens_decoder())
    if model.get("unk_token") in ids:
        added.add(ids[model["unk_token"]])
    ranks = {pair: rank for rank, pair in enumerate(read_merges(model))}
    parts, pieces, rank = {}, {}, {}
    for text in model["vocab"]:
        made, last = _merge(text, ranks)
        pieces[ids[text]] = tuple(ids[piece] for piece in made if piece != text and piece in ids)
        if len(made) == 1 and last is not None:
            parts[ids[text]] = pieces[ids[text]] = (ids[last[0]], ids[last[1]])
            rank[ids[text]] = ranks[last]
    for text in model["vocab"] if is_sentencepiece(tokenizer_json) else ():
        if len(text) == 1:
            pieces[ids[text]] = tuple(ids[BYTES[byte]] for byte in text.encode())
    symbols = frozenset(ids[symbol] for symbol in alphabet(tokenizer_json) if symbol in model["vocab"])
    return Vocabulary(ids, symbols, frozenset(added), parts, pieces, rank)


def alphabet(tokenizer_json: dict[str, Any]) -> list[str]:
    """The tokens that spell any text: they are always kept."""
    from tokenizers import pre_tokenizers

    if is_sentencepiece(tokenizer_json):
        return [*BYTES, SPACE]
    return list(pre_tokenizers.ByteLevel.alphabet())


def _merge(text: str, ranks: dict[tuple[str, str], int]) -> tuple[list[str], tuple[str, str] | None]:
    """What BPE makes of a piece of text, and its last merge: lowest rank first, then leftmost."""
    pieces, last = list(text), None
    while len(pieces) > 1:
        best, index = min((ranks.get(pair, math.inf), i) for i, pair in enumerate(pairwise(pieces)))
        if best == math.inf:
            break
        last = (pieces[index], pieces[index + 1])
        pieces[index : index + 2] = ["".join(last)]
    return pieces, last


def close_tokens(vocabulary: Vocabulary, tokens: Iterable[int]) -> list[int]:
    """The tokens and all those that BPE goes through to build them, ascending ids."""
    closed: set[int] = set()
    waiting = list(tokens)
    while waiting:
        token = waiting.pop()
        if token not in closed:
            closed.add(token)
            waiting.extend(vocabulary.parts.get(token, ()))
    return sorted(closed)


def choose_tokens(
    tokenizer_json: dict[str, Any],
    counts: Sequence[int] | np.ndarray,
    *,
    min_count: int = 1,
    size: int | None = None,
    keep: Iterable[str] = (),
    always: Iterable[int] = (),
) -> list[int]:
    """The kept ids, ascending; closed, and never without the byte symbols, the added tokens and one merge.

    From the whole vocabulary the least used token that no other token is built from is dropped, again and
    again. What it was counted is added to the pieces that its text then becomes.

    Args:
        tokenizer_json: parsed tokenizer.json of the base model.
        counts: how often each token occurs in the corpus, [highest id + 1], as `count_tokens` gives it.
        min_count: stop where every removable token is used this often. 1 drops no token that occurs.
        size: stop at exactly this many tokens instead.
        keep: terms that must go on being encoded to the same tokens, alone and after a space.
        always: ids that must be kept, such as those of `config_token_ids`.

    Raises:
        EdgeError: not a byte-level BPE, counts of another vocabulary, an unknown id in `always`, or a size
            that is below what must be kept or above what there is.
    """
    vocabulary = read_vocabulary(tokenizer_json)
    if len(counts) != vocabulary.rows:
        raise EdgeError(
            f"there are counts for {len(counts)} tokens, the tokenizer has {vocabulary.rows}",
            "count the tokens with the same tokenizer",
        )
    required = required_tokens(vocabulary, open_tokenizer(tokenizer_json), keep, always)
    least = len(required) + (not required & vocabulary.rank.keys())  # one that a merge makes
    if size is not None and not least <= size <= len(vocabulary.ids):
        symbols, added = len(vocabulary.byte_symbols), len(vocabulary.added)
        raise EdgeError(
            f"{size:,} tokens can't be kept: {least:,} must be kept ({symbols} byte symbols, {added} "
            "special and added tokens, one merge, the rest for terms to keep), and there are "
            f"{len(vocabulary.ids):,}",
            "ask for a size in between",
        )
    return _Dropper(vocabulary, required, [int(count) for count in counts]).run(min_count, size)


def required_tokens(
    vocabulary: Vocabulary, tokenizer: Tokenizer, keep: Iterable[str], always: Iterable[int]
) -> set[int]:
    """Ids that are kept whatever the corpus holds; arguments and errors are those of `choose_tokens`."""
    tokens = set(vocabulary.byte_symbols | vocabulary.added) | set(always)
    unknown = sorted(tokens - set(vocabulary.ids.values()))
    if unknown:
        raise EdgeError(
            f"the vocabulary has no token with id {unknown[0]}, which must be kept", "correct the id"
        )
    texts = [text for term in keep if term for text in (term, f" {term}")]
    for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
        tokens.update(encoding.ids)
    return set(close_tokens(vocabulary, tokens))


class _Dropper:
    """Drops leaves: tokens that no kept token is built from. So what is kept is closed at any time.

    A token's cost is what it is worth itself, and `further` times what it was given by dropped ones that it
    now spells.
    """

    def __init__(
        self, vocabulary: Vocabulary, required: set[int], worth: Sequence[float], further: float = 1
    ) -> None:
        self.vocabulary, self.required, self.further = vocabulary, required, further
        self.worth, self.costs = list(worth), list(worth)
        self.kept = set(vocabulary.ids.values())
        self.users = Counter(part for pair in vocabulary.parts.values() for part in set(pair))
        self.merged = len(vocabulary.rank)  # kept tokens that a merge makes
        self.heap: list[tuple[float, bool, int, int]] = []
        for token in self.kept:
            self._offer(token)

    def run(self, min_count: int, size: int | None) -> list[int]:
        """Drop until `size` tokens are left, or until every leaf is used `min_count` times."""
        while (cost := self.cheapest()) is not None:
            if cost >= min_count if size is None else len(self.kept) <= size:
                break
            self.drop()
        return sorted(self.kept)

    def cheapest(self) -> float | None:
        """The cost of the leaf that is dropped next; None if there is none."""
        while self.heap:
            cost, is_merged, _, token = self.heap[0]
            stale = token not in self.kept or cost != self.costs[token]  # offered again since, at more
            # llama.cpp loads no byte-level BPE without merges
            if not stale and not (is_merged and self.merged == 1):
                return cost
            heapq.heappop(self.heap)
        return None

    def drop(self) -> int:
        """Drop the cheapest leaf, which there must be; its id."""
        _, is_merged, _, token = heapq.heappop(self.heap)
        self.merged -= is_merged
        self.kept.remove(token)
        used = self.worth[token]
        for piece in self.vocabulary.pieces[token] if used else ():
            self._give(piece, used)
        for part in set(self.vocabulary.parts.get(token, ())):
            self.users[part] -= 1
            self._offer(part)
        return token

    def _offer(self, token: int) -> None:
        if token not in self.required and not self.users[token]:
            rank = self.vocabulary.rank.get(token)
            # Of equally used ones, what no merge builds is removed first, then the latest merge.
            heapq.heappush(self.heap, (self.costs[token], rank is not None, -(rank or 0), token))

    def _give(self, token: int, used: float) -> None:
        if token in self.kept:
            self.worth[token] += used
            self.costs[token] += self.further * used
            self._offer(token)
        else:
            for piece in self.vocabulary.pieces[token]:
                self._give(piece, used)


@dataclass(frozen=True)
class RemovalOrder:
    """Tokens in the order in which they are removed, so that what is kept is closed after each.

    Attributes:
        kept: ids that are never removed, ascending.
        removed: ids, int64 [n].
        costs: expected splits for each that is removed, per token of text: 1 for an occurrence of its own,
            FURTHER for one that it has spelled a part of; float64 [n].
        longer: by how many tokens a token of text becomes longer with each; float64 [n].
    """

    kept: tuple[int, ...]
    removed: np.ndarray
    costs: np.ndarray
    longer: np.ndarray

    def tokens(self, size: int) -> tuple[int, ...]:
        """The ids that are left when `size` tokens are, ascending."""
        rest = self.removed[len(self.kept) + len(self.removed) - size :]
        return tuple(sorted([*self.kept, *rest.tolist()]))


def removal_order(vocabulary: Vocabulary, expected: np.ndarray, required: set[int]) -> RemovalOrder:
    """All tokens but the required ones, the cheapest leaf first.

    Args:
        expected: occurrences of each token per token of text, [highest id + 1].
        required: ids that are kept; closed.
    """
    import numpy as np

    dropper = _Dropper(vocabulary, required, expected.tolist(), FURTHER)
    removed, costs, longer = list[int](), list[float](), list[float]()
    while (cost := dropper.cheapest()) is not None:
        costs.append(cost)
        removed.append(dropper.drop())
        longer.append(dropper.worth[removed[-1]] * (len(vocabulary.pieces[removed[-1]]) - 1))
    ids, *sums = np.array(removed, np.int64), np.array(costs), np.array(longer)
    return RemovalOrder(tuple(sorted(dropper.kept)), ids, *sums)


def unreachable_tokens(tokenizer_json: dict[str, Any]) -> list[str]:
    """Tokens that the merges do not build, found by giving each token's own text to the real BPE.

    Added tokens are left out: they are matched whole. With ignore_merges the others can still come from a
    piece of text that is exactly that token.
    """
    check_tokenizer(tokenizer_json)
    model = {**tokenizer_json["model"], "ignore_merges": False}
    tokenizer = open_tokenizer({**tokenizer_json, "model": model})
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    bpe, found = tokenizer.model, []
    for text in model["vocab"]:
        if text not in added and [token.value for token in bpe.tokenize(text)] != [text]:
            found.append(text)
    return found
