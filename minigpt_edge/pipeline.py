"""`build`: the stages in order. Each is a directory that is reused when nothing it depends on changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minigpt_edge import archs, corpus, domains, memory, models, parallel
from minigpt_edge.console import Talk
from minigpt_edge.packages import cache_dir
from minigpt_edge.prune import STRUCTURED, get_method
from minigpt_edge.recipe import Recipe
from minigpt_edge.settings import WINDOW, fitted_settings, given_plan, keep_terms, shrink_settings
from minigpt_edge.shipping import Shipment, ship
from minigpt_edge.shrink.prepare import CHECKPOINT
from minigpt_edge.shrink.weights import PLAN, preview, shrink
from minigpt_edge.stage import Stage, held, run_stage
from minigpt_edge.stage_code import CORPUS_CODE, EVALUATE_CODE, PRUNE_CODE, RECOVER_CODE
from minigpt_edge.windows import MAX_TOKENS
from minigpt_edge_export.targets import parse_target
from minigpt_edge_runtime import __version__
from minigpt_edge_runtime.errors import UsageError
from minigpt_edge_runtime.files import sha256_file, sha256_json

MOST = 0.5  # of the documents: fewer in the domain's language are worth a warning


@dataclass(frozen=True)
class Built:
    """The outcome of a build: the bundle, the shrunk model's checkpoint, the report, and if all was there."""

    directory: Path
    checkpoint: Path
    report: dict[str, Any]
    unchanged: bool


def build(recipe: Recipe, talk: Talk, command: str = "") -> Built:
    """Make a bundle, reusing every finished stage that still fits.

    Raises:
        UsageError: the recipe names something that does not exist.
        EdgeError: any stage failed; finished stages stay.
    """
    sources = corpus_sources(recipe)
    targets = [parse_target(name) for name in dict.fromkeys(recipe.targets)]
    get_method(recipe.method)
    work = recipe.work or cache_dir() / "work"
    talk.events.say("start", command=command, minigpt_edge=__version__)
    base = models.resolve_model(recipe.model, offline=recipe.offline)
    parallel.told("the model is there")
    talk.line("model", f"{base.name}, {base.parameters / 1e6:.1f} M parameters, from {base.source}")
    out = recipe.out or Path(f"{base.name}-{recipe.domain or Path(recipe.corpus[0]).stem}".lower())
    place = out.resolve()  # "." has no name to put a folder beside
    name = f"out-{sha256_json(str(place))[:16]}"
    with held(work, name, busy=f"another build is making {out}"):
        talk.events.to_run_directory(work)
        shipment = Shipment(out=place, name=place.name, force=recipe.force)
        shipment.check_output()
        text, dense, pruned, recovered = _stages(work, recipe, base, sources, talk)
        parallel.part()
        return Built(
            out,
            recovered.path if recovered else pruned.path / CHECKPOINT,
            *ship(
                shipment,
                work=work,
                recipe=recipe,
                base=base,
                targets=targets,
                text=text,
                dense=dense,
                pruned=pruned,
                recovered=recovered,
                talk=talk,
                command=command,
            ),
        )


def take_part(recipe: Recipe, talk: Talk) -> None:
    """The part in `build` of a process that is not its first: calibration and fine-tuning.

    Raises:
        EdgeError: as `build`; or the first process failed.
    """
    parallel.told("")
    base = models.resolve_model(recipe.model, offline=recipe.offline)
    _stages(recipe.work or cache_dir() / "work", recipe, base, corpus_sources(recipe), talk)


def _stages(
    work: Path, recipe: Recipe, base: models.BaseModel, sources: Sequence[corpus.Source], talk: Talk
) -> tuple[Stage, Stage, Stage, Stage | None]:
    """Corpus, dense model, pruned model and, unless the recipe does without, the recovered one."""
    text = corpus_stage(work, recipe, base, sources, talk)
    dense = dense_stage(work, recipe, base, text, talk)
    pruned = prune_stage(work, recipe, base, text, talk)
    return text, dense, pruned, recover_stage(work, recipe, base, pruned, text, dense, talk)


def corpus_sources(recipe: Recipe) -> list[corpus.Source]:
    if recipe.domain:
        return domains.load_domain(recipe.domain).chosen(recipe.source)
    return [corpus.source_of(value, recipe.text_column) for value in recipe.corpus]


def corpus_stage(
    work: Path,
    recipe: Recipe,
    base: models.BaseModel,
    sources: Sequence[corpus.Source],
    talk: Talk,
    *,
    to_train: bool = True,
) -> Stage:
    """train, validation and test documents, and the evaluation windows.

    Raises:
        EdgeError: a source can't be read, or there is too little text, `to_train` for calibration too.
    """
    talk.step("corpus")
    longest = min(MAX_TOKENS, base.context * 3 // 4)  # a trimmed vocabulary makes more tokens of a text
    stage = run_stage(
        work,
        "corpus",
        settings={
            "sources": [{"kind": type(source).__name__, **_jsonable(asdict(source))} for source in sources],
            "window_tokens": longest,
        },
        inputs={"tokenizer": sha256_file(base.tokenizer), **_local_files(sources)},
        code=CORPUS_CODE,
        make=lambda out: corpus.build_corpus(
            sources,
            out,
            base_tokenizer_path=base.tokenizer,
            document_start=base.document_start,
            offline=recipe.offline,
            window_tokens=longest,
        ),
    )
    if to_train:
        corpus.check_enough(stage.metrics["splits"], recipe.calibration_tokens)
    train = stage.metrics["splits"]["train"]
    talk.line(
        "corpus",
        f"{sum(split['documents'] for split in stage.metrics['splits'].values()):,} documents, "
        f"{train['base_tokens']:,} tokens to train on",
        stage.manifest["seconds"],
        reused=stage.reused,
    )
    if recipe.domain:
        _check_language(domains.load_domain(recipe.domain), stage.metrics["languages"], talk)
    return stage


def _check_language(domain: domains.Domain, found: dict[str, float], talk: Talk) -> None:
    """Warn if most documents are in another language than the domain says."""
    same = {"zh": ("zh", "yue")}.get(domain.language, (domain.language,))
    if found and sum(found.get(code, 0.0) for code in same) < MOST:
        code, share = next(iter(found.items()))
        talk.line(
            "corpus",
            f"[yellow]warning:[/] domain {domain.name} says its language is {domain.language}, but "
            f"{share:.0%} of the documents look like {code}",
        )


def _local_files(sources: Sequence[corpus.Source]) -> dict[str, str]:
    """sha256 of local corpus files: a changed file makes a new corpus."""
    found: dict[str, str] = {}
    for source in sources:
        if isinstance(source, corpus.FileSource):
            path = Path(source.path).expanduser()  # as the corpus is read
            files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            found |= {str(file): sha256_file(file) for file in files if file.is_file()}
    return found


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(part) for key, part in value.items()}
    return str(value) if isinstance(value, Path) else value


def dense_stage(work: Path, recipe: Recipe, base: models.BaseModel, text: Stage, talk: Talk) -> Stage:
    """The dense checkpoint's quality on the validation windows."""

    def make(out: Path) -> dict[str, Any]:
        return _evaluate(base.path, text, recipe.threads)

    talk.step("dense model")
    stage = run_stage(
        work,
        "dense",
        settings={"threads": recipe.threads},
        inputs={"model": base.fingerprint, "validation": text.manifest["outputs"]["validation.texts.json"]},
        code=EVALUATE_CODE,
        make=make,
    )
    talk.line("dense", _quality_text(stage.metrics), stage.manifest["seconds"], reused=stage.reused)
    return stage


def _evaluate(checkpoint: Path, text: Stage, threads: int) -> dict[str, Any]:
    import torch

    from minigpt_edge.evaluate.perplexity import evaluate

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    return evaluate(checkpoint, text.path / "validation.texts.json")


def _quality_text(quality: dict[str, Any]) -> str:
    return (
        f"{quality['bits_per_byte']:.4f} bits per byte, perplexity "
        f"{quality['perplexity_per_base_token']:.2f} on validation"
    )


def plan_only(recipe: Recipe, talk: Talk) -> dict[str, Any]:
    """What a build would keep of each block and how large its files would be; see `weights.preview`."""
    sources, work = corpus_sources(recipe), recipe.work or cache_dir() / "work"
    gguf = [name for name in recipe.targets if parse_target(name).format == "gguf"]
    if shrink_settings(recipe).pattern != STRUCTURED:
        raise UsageError("--dry-run is for methods that remove units", "leave it out")
    base = models.resolve_model(recipe.model, offline=recipe.offline)
    text = corpus_stage(work, recipe, base, sources, talk)
    settings = fitted_settings(recipe, base, talk)
    return preview(
        base.path,
        base.fingerprint,
        corpus.read_split(text.path, "train"),
        settings,
        gguf,
        plan=given_plan(recipe),
        terms=keep_terms(recipe),
        on_progress=lambda what, done, total: talk.step(f"plan: {what}", done, total),
        max_memory=recipe.max_memory,
    )


def prune_stage(work: Path, recipe: Recipe, base: models.BaseModel, text: Stage, talk: Talk) -> Stage:
    """The pruned checkpoint, its plan and the importance matrix."""
    settings, terms, plan = fitted_settings(recipe, base, talk), keep_terms(recipe), given_plan(recipe)

    def make(out: Path) -> dict[str, Any]:
        with parallel.own_folder(out) as folder:
            metrics = shrink(
                base.path,
                base.fingerprint,
                corpus.read_split(text.path, "train"),
                folder,
                settings,
                plan=plan,
                terms=terms,
                on_progress=lambda what, done, total: talk.step(f"prune: {what}", done, total),
                max_memory=recipe.max_memory,
            )
        if parallel.rank():
            return metrics
        talk.step("prune: evaluation")
        return {**metrics, "quality": _evaluate(out / CHECKPOINT, text, recipe.threads)}

    talk.step("prune")
    stage = run_stage(
        work,
        "prune",
        settings={**asdict(settings), "terms": terms, **_processes()},
        inputs={
            "model": base.fingerprint,
            "corpus": text.digest,
            **({"plan": sha256_file(plan)} if plan else {}),
        },
        code=(*PRUNE_CODE, *archs.code_of(base.path), get_method(recipe.method).module, *EVALUATE_CODE),
        make=make,
        together=True,
    )
    kept = stage.metrics["parameters"]
    what = f"{stage.metrics['sparsity']:.2%} of the parameters gone, {kept['kept'] / 1e6:.1f} M left; "
    if "zeros" in stage.metrics:
        what = (
            f"{stage.metrics['zeros']:.2%} of the blocks' weights are zero, which makes no file smaller and "
            "no CPU faster; "
        )
    if stage.metrics.get("reductions") is not None:
        what = (
            f"low rank in {len(stage.metrics['reductions'].split(','))} matrices: ONNX files keep two small "
            f"matrices for each ({stage.metrics['spared_where_factors_run'] / 1e6:.1f} M parameters fewer), "
            "GGUF files their product; "
        )
    talk.line(
        "prune",
        what + _quality_text(stage.metrics["quality"]),
        stage.manifest["seconds"],
        reused=stage.reused,
    )
    return stage


def _processes() -> dict[str, int]:
    """The number of processes as a setting, since it changes how sums round; nothing for one."""
    return {"processes": parallel.processes()} if parallel.processes() > 1 else {}


def recover_stage(
    work: Path,
    recipe: Recipe,
    base: models.BaseModel,
    pruned: Stage,
    text: Stage,
    dense: Stage,
    talk: Talk,
) -> Stage | None:
    """The fine-tuned checkpoint; None if the recipe does without."""
    from minigpt_edge.finetune import STEP_TOKENS

    if recipe.recover == "no":
        return None
    until = dense.metrics["perplexity_per_base_token"] if recipe.recover == "dense" else None
    checkpoint, teacher = pruned.path / CHECKPOINT, base.path if recipe.distill else None
    room = memory.Recovery(checkpoint, teacher, recipe.lora_rank is not None, recipe.max_memory)
    micro = room.micro_tokens(STEP_TOKENS, min(WINDOW, base.context))

    def make(out: Path) -> dict[str, Any]:
        room.check(micro)
        return _recover(out, recipe, base, pruned, text, until, micro, talk)

    talk.step("recover")
    stage = run_stage(
        work,
        "recover",
        settings={
            "tokens": recipe.recover_tokens,
            "distill": recipe.distill,
            "lora_rank": recipe.lora_rank,
            "until_perplexity": until,
            "seed": recipe.seed,
            "threads": recipe.threads,
            **({"micro_tokens": micro} if micro < STEP_TOKENS else {}),
            **_processes(),
        },
        inputs={
            "pruned": pruned.digest,
            "corpus": text.digest,
            **({"teacher": base.fingerprint} if recipe.distill else {}),
        },
        code=(*RECOVER_CODE, *EVALUATE_CODE),
        make=make,
        resumable=True,
        together=True,
    )
    after = stage.metrics["after"]
    talk.line(
        "recover",
        f"{stage.metrics['tokens']:,} tokens at {stage.metrics['tokens_per_second']:,.0f} tokens/s; "
        + _quality_text(after),
        stage.manifest["seconds"],
        reused=stage.reused,
    )
    return stage


def _recover(
    out: Path,
    recipe: Recipe,
    base: models.BaseModel,
    pruned: Stage,
    text: Stage,
    until: float | None,
    micro: int,
    talk: Talk,
) -> dict[str, Any]:
    from minigpt_edge.finetune import recover
    from minigpt_edge.plan import read_plan
    from minigpt_edge.teacher import Teacher

    tokens = read_plan(pruned.path / PLAN).tokens
    return recover(
        pruned.path / CHECKPOINT,
        out,
        train=text.path / "train.jsonl",
        validation=text.path / "validation.texts.json",
        tokens=recipe.recover_tokens,
        sequence_length=min(WINDOW, base.context),
        teacher=Teacher(base.path, tokens, recipe.distill) if recipe.distill else None,
        lora_rank=recipe.lora_rank,
        micro_tokens=micro,
        seed=recipe.seed,
        threads=recipe.threads,
        until_perplexity=until,
        before=pruned.metrics["quality"],
        on_progress=talk.recovery,
    )
