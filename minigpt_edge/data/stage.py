"""The corpus stage: documents of train, validation and test, and the evaluation windows."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minigpt_edge.data import corpus, domains
from minigpt_edge.data.reading import read_lines
from minigpt_edge.data.sources import FileSource, Source, source_of
from minigpt_edge.data.windows import MAX_TOKENS
from minigpt_edge.recipe import Recipe
from minigpt_edge.stages.console import Log
from minigpt_edge.stages.context import BuildContext
from minigpt_edge.stages.stage import Stage, StageSpec, run_stage
from minigpt_edge_runtime.errors import UsageError
from minigpt_edge_runtime.files import sha256_file

MOST = 0.5  # of the documents: fewer in the domain's language are worth a warning

CODE = (
    *("minigpt_edge.data", "minigpt_edge.models", "minigpt_edge_export"),
    *("minigpt_edge_runtime.engines", "minigpt_edge_runtime.formats"),
)


def corpus_sources(recipe: Recipe) -> list[Source]:
    if recipe.domain:
        return domains.load_domain(recipe.domain).chosen(recipe.source)
    return [source_of(value, recipe.text_column) for value in recipe.corpus]


def corpus_stage(context: BuildContext, *, to_train: bool = True) -> Stage:
    """train, validation and test documents, and the evaluation windows.

    Its metrics are what corpus.json holds and "download_seconds".

    Raises:
        EdgeError: a source can't be read, or there is too little text, `to_train` for calibration too.
    """
    recipe, base, log = context.recipe, context.base, context.log
    sources = corpus_sources(recipe)
    log.step("corpus")

    def tell(line: str) -> None:
        log.line("corpus", line)

    def make(out: Path) -> dict[str, Any]:
        begun = time.monotonic()
        for source in sources:
            source.fetch(offline=recipe.offline)
        seconds = time.monotonic() - begun
        info = corpus.build_corpus(
            corpus.read_sources(sources, offline=recipe.offline, tell=tell),
            out,
            base_tokenizer_path=base.tokenizer,
            document_start=base.document_start,
            window_tokens=longest,
        )
        return {**info, "download_seconds": round(seconds, 2)}

    longest = min(MAX_TOKENS, base.context * 3 // 4)  # a trimmed vocabulary makes more tokens of a text
    stage = run_stage(
        context.work,
        StageSpec(
            "corpus",
            settings={
                "sources": [asdict(source) for source in sources],
                "window_tokens": longest,
                "document_start": base.document_start,
            },
            inputs={"tokenizer": sha256_file(base.tokenizer), **local_files(sources)},
            code=CODE,
        ),
        make,
    )
    _check_columns(recipe, stage.metrics["sources"])
    for line in read_lines(stage.metrics["sources"]) if stage.cached else ():
        tell(line)
    for line in corpus.made_lines(stage.metrics):
        tell(line)
    if to_train:
        corpus.check_enough(stage.metrics, recipe.calibration_tokens)
    train = stage.metrics["splits"]["train"]
    documents = sum(split["documents"] for split in stage.metrics["splits"].values())
    log.finished("corpus", f"{documents:,} documents, {train['base_tokens']:,} tokens to train on", stage)
    if recipe.domain:
        _check_language(domains.load_domain(recipe.domain), stage.metrics["languages"], log)
    return stage


def _check_columns(recipe: Recipe, sources: Sequence[dict[str, Any]]) -> None:
    """UsageError for a --text-column that no file has."""
    read = {part.get("column") for source in sources for part in source.get("read", ())}
    if idle := [name for name in recipe.text_column if name not in read]:
        raise UsageError(f"--text-column {idle[0]!r} is a column of nothing that was read", "leave it out")


def _check_language(domain: domains.Domain, found: dict[str, float], log: Log) -> None:
    """Warn if most documents are in another language than the domain says."""
    same = {"zh": ("zh", "yue")}.get(domain.language, (domain.language,))
    if found and sum(found.get(code, 0.0) for code in same) < MOST:
        code, share = next(iter(found.items()))
        log.line(
            "corpus",
            f"domain {domain.name} says its language is {domain.language}, but {share:.0%} of the documents "
            f"look like {code}",
            warning=True,
        )


def local_files(sources: Sequence[Source]) -> dict[str, str]:
    """sha256 of local corpus files: a changed file makes a new corpus."""
    found: dict[str, str] = {}
    for source in sources:
        if isinstance(source, FileSource):
            path = Path(source.path).expanduser()  # as the corpus is read
            files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            # A name that is no text must not be one of two that are written alike.
            names = {file: os.fsencode(file).decode("utf-8", "backslashreplace") for file in files}
            found |= {names[file]: sha256_file(file) for file in files if file.is_file()}
    return found
