"""The gate after export: the file must give the checkpoint's logits, and the tokenizer's ids on every text.

What is comparable of the tokenizers: with specials off, "<|im_end|>" in a text is text to both (`tokenizers`
splits special tokens out unless `encode_special_tokens` is set), and added tokens that are not special are
whole tokens to both. With specials on, both read special tokens. Both modes are compared. Bytes that no token
of the vocabulary can spell are dropped by both; the round trip is compared without them, and they are
reported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge_export.scripts import TEN_SCRIPTS
from minigpt_edge_export.tokenizer import open_tokenizer
from minigpt_edge_runtime.engine import open_engine
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import os_error, write_json

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

# SmolLM2-135M against torch in float32, 768 tokens: F16 8e-6 mean, 1.2e-4 at most, 100 % agreement;
# BF16 3.2e-4, 5.6e-3, 99.7 %. What is built wrongly is off by far more.
MAX_KL_MEAN = 1e-3
MAX_KL = 0.1
MIN_AGREEMENT = 0.99  # float16 reference logits alone turn 0.1 % of the positions, by ties
_KEPT = 5  # examples of failures that are kept
_CONTEXT = 64  # a tokenizer needs no cache


@dataclass(frozen=True)
class LogitParity:
    """How far the file's next-token distributions are from the checkpoint's, over `tokens` positions.

    KL divergences (checkpoint from file) are in nats; `argmax_agreement` is the share of positions where both
    find the same token most likely.
    """

    kl_mean: float
    kl_max: float
    argmax_agreement: float
    tokens: int

    @property
    def good(self) -> bool:
        """Whether it is within the thresholds; NaN is not."""
        small = self.kl_mean <= MAX_KL_MEAN and self.kl_max <= MAX_KL
        return self.tokens > 0 and small and self.argmax_agreement >= MIN_AGREEMENT


@dataclass(frozen=True)
class Mismatch:
    """A text whose token ids differ: the ids from the first difference on, at most 20 of each."""

    text: str
    specials: bool
    position: int
    expected: list[int]
    found: list[int]


@dataclass(frozen=True)
class TokenParity:
    """Token ids of llama.cpp against `tokenizers`, and the way back to bytes.

    Attributes:
        texts: number of texts compared.
        tokens: number of their tokens, with specials off.
        mismatched: texts whose ids differ, with specials off or on.
        mismatches: the first few of them.
        roundtrip_failed: texts that do not come back byte for byte.
        roundtrip_failures: the first few of them.
        unspellable_bytes: bytes that no token can spell, in either tokenizer.
    """

    texts: int
    tokens: int
    mismatched: int
    mismatches: list[Mismatch]
    roundtrip_failed: int
    roundtrip_failures: list[str]
    unspellable_bytes: list[int]

    @property
    def good(self) -> bool:
        """Whether all texts have the same ids and come back byte for byte."""
        return self.texts > 0 and not self.mismatched and not self.roundtrip_failed


def verify_logits(gguf_path: Path, reference: Path, threads: int) -> LogitParity:
    """Compare a file's logits with the checkpoint's; each row is evaluated from an empty cache.

    Args:
        gguf_path: the file.
        reference: a safetensors file {"tokens": int32 [n, T], "logits": float16 or float32 [n, T, vocab]}
            that the caller wrote from the checkpoint.
        threads: CPU threads.

    Raises:
        EdgeError: the reference is damaged or has another shape, or the file can't be loaded.
    """
    import numpy as np
    from safetensors import SafetensorError, safe_open

    divergences: list[np.ndarray] = []
    same = 0
    try:
        with safe_open(reference, framework="np") as file:
            logits, tokens = file.get_slice("logits"), file.get_tensor("tokens")
            shape = tuple(logits.get_shape())
            if tokens.ndim != 2 or shape[:-1] != tokens.shape:
                raise EdgeError(f"{reference}: logits {shape} do not belong to tokens {tokens.shape}", None)
            with open_engine(gguf_path, max(tokens.shape[1], 1), threads, logits_all=True) as engine:
                if engine.vocab_size != shape[-1]:
                    raise EdgeError(
                        f"{gguf_path} has {engine.vocab_size} tokens, the checkpoint {shape[-1]}", None
                    )
                for row in range(len(tokens)):
                    start = 0
                    for found in engine.score(tokens[row].tolist()):
                        expected = logits[row, start : start + len(found)].astype(np.float32)
                        divergences.append(_divergence(expected, found))
                        same += int((expected.argmax(-1) == found.argmax(-1)).sum())
                        start += len(found)
    except SafetensorError as error:
        raise EdgeError(f"{reference} is not a whole reference file ({error})", "write it again") from error
    except OSError as error:
        raise os_error(error, reference) from error
    kl = np.concatenate([*divergences, np.empty(0)])
    if not kl.size:
        raise EdgeError(f"{reference} holds no tokens to compare", "give it some text")
    return LogitParity(float(kl.mean()), float(kl.max()), same / kl.size, int(kl.size))


def verify_tokenizer(gguf_path: Path, tokenizer_json: Path, texts: Sequence[str]) -> TokenParity:
    """Compare llama.cpp's token ids with those of `tokenizers` on every text, and on each special token.

    Raises:
        EdgeError: a file is missing or damaged.
    """
    tokenizer = open_tokenizer(tokenizer_json)
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    unspellable = _unspellable(tokenizer)
    dropped = bytes(unspellable)
    count, mismatches, failures = 0, [], []
    with open_engine(gguf_path, _CONTEXT, 1) as engine:
        for text in (*texts, *(f"a{token}b {token} c" for token in special)):
            for specials in (False, True) if any(token in text for token in special) else (False,):
                tokenizer.encode_special_tokens = not specials
                expected = tokenizer.encode(text, add_special_tokens=False).ids
                found = engine.tokenize(text, special=specials)
                if found != expected:
                    mismatches.append(_mismatch(text, specials, expected, found))
                if not specials:
                    count += len(expected)
                if engine.detokenize(found, special=specials) != text.encode().translate(None, dropped):
                    failures.append(text)
    return TokenParity(
        texts=len(texts) + len(special),
        tokens=count,
        mismatched=len(mismatches),
        mismatches=mismatches[:_KEPT],
        roundtrip_failed=len(failures),
        roundtrip_failures=[text[:500] for text in failures[:_KEPT]],
        unspellable_bytes=unspellable,
    )


def check(
    gguf_path: Path,
    *,
    reference: Path,
    tokenizer_json: Path,
    texts: Sequence[str],
    evidence: Path,
    threads: int,
) -> tuple[LogitParity, TokenParity]:
    """Let an F16 (or BF16, F32) file pass or raise; the figures are written to `evidence` either way.

    Args:
        gguf_path: the file.
        reference: see `verify_logits`.
        tokenizer_json: the checkpoint's.
        texts: held-out texts; `TEN_SCRIPTS` are compared too.
        evidence: a JSON file to write.
        threads: CPU threads.

    Raises:
        EdgeError: the logits or the token ids differ by more than the thresholds allow.
    """
    logits = verify_logits(gguf_path, reference, threads)
    tokens = verify_tokenizer(gguf_path, tokenizer_json, [*texts, *TEN_SCRIPTS.values()])
    passed = logits.good and tokens.good
    figures: dict[str, Any] = {
        "passed": passed,
        "thresholds": {"kl_mean": MAX_KL_MEAN, "kl_max": MAX_KL, "argmax_agreement": MIN_AGREEMENT},
        "logits": dataclasses.asdict(logits),
        "tokens": dataclasses.asdict(tokens),
    }
    write_json(evidence, figures)
    if not passed:
        reasons = []
        if not logits.good:
            reasons.append(
                f"logits differ (KL {logits.kl_mean:.2g} mean, {logits.kl_max:.2g} at most, "
                f"{logits.argmax_agreement:.1%} of the most likely tokens agree)"
            )
        if tokens.mismatched:
            reasons.append(f"{tokens.mismatched} of {tokens.texts} texts get other token ids")
        if tokens.roundtrip_failed:
            reasons.append(
                f"{tokens.roundtrip_failed} of {tokens.texts} texts do not come back byte for byte"
            )
        raise EdgeError(
            f"{gguf_path.name} does not match its checkpoint: {'; '.join(reasons)}",
            f"the evidence is in {evidence}",
        )
    return logits, tokens


def _divergence(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL(softmax(expected) || softmax(found)) in nats: float32 [n, vocab] twice -> float64 [n]."""
    import numpy as np

    p, q = (_log_softmax(logits) for logits in (expected, found))
    return np.einsum("nv,nv->n", np.exp(p), p - q, dtype=np.float64)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    import numpy as np

    shifted = logits - logits.max(-1, keepdims=True)
    total: np.ndarray = np.exp(shifted).sum(-1, keepdims=True, dtype=np.float64)
    return shifted - np.log(total).astype(np.float32)


def _unspellable(tokenizer: Tokenizer) -> list[int]:
    """Bytes without a symbol in the vocabulary: byte-level BPE drops them, here and in llama.cpp."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}  # these stand for themselves
    others = [byte for byte in range(256) if byte not in shown]
    symbols = {byte: chr(byte) for byte in shown} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    return [byte for byte in range(256) if tokenizer.token_to_id(symbols[byte]) is None]


def _mismatch(text: str, specials: bool, expected: list[int], found: list[int]) -> Mismatch:
    pairs = zip(expected, found, strict=False)
    shorter = min(len(expected), len(found))
    position = next((index for index, (a, b) in enumerate(pairs) if a != b), shorter)
    shown = slice(position, position + 20)
    return Mismatch(text[:500], specials, position, expected[shown], found[shown])
