"""Whether a bundle is whole and computes here what it computed where it was built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.bundle.manifest import verify_checksums
from minigpt_edge_runtime.bundle.open import Bundle, read_bundle
from minigpt_edge_runtime.bundle.parity import REFERENCE, compare_with_reference
from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.tokenizer_files import TOKENIZER

# Mean difference in nats per token: kernels differ between CPUs in the last bits, wrong weights far more.
NLL_TOLERANCE = 0.05
CHECK_TOKENS = 256

SCRIPTS = (
    "The quick brown fox, 1234567 times: don't stop!",
    "Ça coûte 42 €, très élégant – naïve façade",
    "Η γρήγορη αλεπού",
    "Съешь ещё этих мягких французских булок",
    "السلام عليكم ورحمة الله",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "快速的棕色狐狸跳過懶狗。",
    "すばやい茶色の狐、カタカナ",
    "다람쥐 헌 쳇바퀴",
    "👩‍👩‍👧‍👦 🇹🇼 naïve\tfoo\n\n    def f(x):\r\n        return x ** 2  \n",
)


def make_check(
    model: Path, text: str, document_start: str | None = None, threads: int | None = None
) -> dict[str, Any]:
    """The likelihood of a text's first tokens under a model file, for a manifest's `checks`.

    Returns:
        {"text", "document_start", "nll": of each of at most 256 tokens, in nats}.
    """
    nll = [round(value, 4) for value in _nll(model, text, document_start, threads)]
    return {"text": text, "document_start": document_start, "nll": nll}


def verify(path: Path, threads: int | None = None) -> dict[str, Any]:
    """Check a bundle or a model file.

    Returns:
        {"ok", "checks": [{"name", "ok", "detail"}]}; a check that can't be made has `ok` None.

    Raises:
        EdgeError: the path is neither a bundle nor a file.
    """
    bundle = read_bundle(path)
    checks = [_attempt("checksums", lambda: _checksums(bundle))]
    for name in bundle.manifest.get("model_files", [bundle.model_path.name]):
        checks += _model_checks(bundle, name, threads)
    return {"path": str(path), "ok": all(check["ok"] is not False for check in checks), "checks": checks}


def _model_checks(bundle: Bundle, name: str, threads: int | None) -> list[dict[str, Any]]:
    prefix, model = f"{name}: ", bundle.directory / name
    formats = _attempt(prefix + "format", lambda: _format(model))
    if not formats["ok"]:
        return [formats]
    return [
        formats,
        _attempt(prefix + "tokenizer", lambda: _tokenizer(bundle, model, threads)),
        _attempt(prefix + "computes", lambda: _computes(bundle, name, threads)),
        _attempt(prefix + "parity", lambda: _parity(bundle, name, threads)),
    ]


def _attempt(name: str, check: Callable[[], tuple[bool | None, str]]) -> dict[str, Any]:
    try:
        ok, detail = check()
    except EdgeError as error:
        ok, detail = False, error.message
    return {"name": name, "ok": ok, "detail": detail}


def _checksums(bundle: Bundle) -> tuple[bool | None, str]:
    if not bundle.manifest:
        return None, "a bare file has no manifest"
    problems = verify_checksums(bundle.directory)
    return not problems, "; ".join(
        problems
    ) or f"{len(bundle.manifest['files'])} files are as they were built"


def _format(model: Path) -> tuple[bool | None, str]:
    if model.suffix.lower() == ".onnx":
        from minigpt_edge_runtime.formats.onnx_header import read_onnx

        onnx = read_onnx(model)
        text = f"ONNX opset {onnx.opsets.get('', 0)}, {sum(onnx.operators.values())} nodes"
        kind = onnx.fact("quantization")
        return True, text + (f", {kind}, {onnx.fact('parameters'):,} weights" if kind else "")
    from minigpt_edge_runtime.formats.gguf_header import read_header

    header = read_header(model)
    text = f"GGUF {header.version}, {header.architecture}, {header.quantization}"
    return True, f"{text}, {header.parameters:,} weights"


def _tokenizer(bundle: Bundle, model: Path, threads: int | None) -> tuple[bool | None, str]:
    with open_engine(model, 32, threads) as engine:
        lost = [text for text in SCRIPTS if engine.detokenize(engine.tokenize(text)) != text.encode()]
        if lost:
            return False, f"bytes are lost of {len(lost)} of {len(SCRIPTS)} texts, first {lost[0]!r}"
        path = bundle.directory / TOKENIZER
        if not bundle.manifest or not path.is_file():
            return True, f"{len(SCRIPTS)} texts in {len(SCRIPTS)} scripts come back byte for byte"
        return _same_ids(engine, path)


def _same_ids(engine: Engine, path: Path) -> tuple[bool | None, str]:
    from minigpt_edge_runtime.engines.text import open_tokenizer

    tokenizer = open_tokenizer(path)
    differ = [t for t in SCRIPTS if tokenizer.encode(t, add_special_tokens=False).ids != engine.tokenize(t)]
    if differ:
        return False, f"token ids differ from tokenizer.json's in {len(differ)} texts, first {differ[0]!r}"
    return True, f"token ids of {len(SCRIPTS)} texts equal tokenizer.json's, and come back byte for byte"


def _computes(bundle: Bundle, name: str, threads: int | None) -> tuple[bool | None, str]:
    model, check = bundle.directory / name, bundle.manifest.get("checks", {}).get(name)
    if check is None:
        _nll(model, SCRIPTS[0], bundle.document_start, threads)
        return True, "its likelihoods are numbers; there are none to compare with"
    try:
        start = check["document_start"]
        text, start = str(check["text"]), None if start is None else str(start)
        there = [float(value) for value in check["nll"]]
    except (KeyError, TypeError, ValueError):
        return False, "what the manifest says to compare with is damaged"
    here = _nll(model, text, start, threads)
    if len(here) != len(there):
        return False, f"the check's text has {len(here)} tokens here, {len(there)} where it was built"
    off = sum(abs(a - b) for a, b in zip(here, there, strict=True)) / len(there)
    return off <= NLL_TOLERANCE, f"likelihoods differ by {off:.4f} nats per token from where it was built"


def _parity(bundle: Bundle, name: str, threads: int | None) -> tuple[bool | None, str]:
    check = bundle.manifest.get("checks", {}).get(name, {})
    limit = check.get("threshold")
    reference = bundle.directory / Path(str(check.get("reference", REFERENCE))).name  # never outside
    if limit is None or not reference.is_file():
        return None, "there are no predictions of the checkpoint to compare with"
    found = compare_with_reference(bundle.directory / name, reference, threads)
    try:
        good = found["kl_mean"] <= limit["kl_mean"] and found["argmax_agreement"] >= limit["argmax_agreement"]
        good = good and found["bits_ratio"] <= limit["bits_ratio"]
    except (KeyError, TypeError):
        return False, "the manifest's thresholds are damaged"
    return good, (
        f"KL to the checkpoint {found['kl_mean']:.1e} (at most {limit['kl_mean']:g}), "
        f"{found['argmax_agreement']:.1%} of arg-max agree (at least {limit['argmax_agreement']:.0%}), "
        f"bits per byte x {found['bits_ratio']:.3f} (at most {limit['bits_ratio']:g})"
    )


def _nll(model: Path, text: str, document_start: str | None, threads: int | None) -> list[float]:
    import math

    from minigpt_edge_runtime.scoring.likelihood import token_nll

    with open_engine(model, None, threads, logits_all=True) as engine:
        ids = engine.tokenize(text)[: min(CHECK_TOKENS, engine.context_length - 1)]
        if not ids:
            raise EdgeError("the text of the check has no tokens", "give some text")
        nll = [float(value) for value in token_nll(engine, [engine.document_start(document_start), *ids])]
    if not math.isfinite(sum(nll)):
        raise EdgeError(f"{model} computes values that are not numbers", "export the model again")
    return nll
