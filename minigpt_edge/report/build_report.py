"""The report of a build: what report.json holds; page, tables, pictures and model card are made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json

Number = int | float
# Of the dense model, all blocks or each of them, and of every block that was kept.
PerBlock = tuple[int | tuple[int, ...], tuple[int, ...]]


class Part(BaseModel):
    """A part of a report; false if nothing of it is known.

    What a report lacks is None or empty here and is not written; keys unknown to this version are kept.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    def __bool__(self) -> bool:
        return bool(self.model_fields_set)

    def to_json(self) -> dict[str, Any]:
        """What a JSON file holds of it, in the order of the fields."""
        return self.model_dump(mode="json", exclude_unset=True)


class BaseModelFacts(Part):
    """The dense model; `licence` as its publisher states it."""

    name: str | None = None
    source: str | None = None
    licence: str | None = None
    parameters: int | None = None
    sha256: str | None = None


class Corpus(Part):
    """The texts; `splits` and `sources` as the corpus stage describes them."""

    documents_read: int | None = None
    dropped: dict[str, int] = {}
    near_duplicate_rate: Number | None = None
    pairs: dict[str, int] = {}
    split_rule: str | None = None
    documents: int | None = None
    bytes: int | None = None
    train_tokens: int | None = None
    sha256: str | None = None
    sources: tuple[dict[str, Any], ...] = ()
    splits: dict[str, dict[str, int]] = {}
    licence: str | None = None


class Sparsity(Part):
    """What was asked for, as a fraction or as limits, and what was removed."""

    asked: Number | None = None
    pattern: str = "structured"
    limits: dict[str, Number] = {}
    achieved: Number | None = None
    parameters_before: int | None = None
    parameters_after: int | None = None
    vocabulary: tuple[int, int] | None = None
    ffn_width: PerBlock | None = None
    kv_groups: PerBlock | None = None
    method: str | None = None


class ValidationQuality(Part):
    """A checkpoint's quality on validation text, in torch; `nll` in nats."""

    step: int | None = None
    nll: Number | None = None
    windows: int | None = None
    bytes: int | None = None
    base_tokens: int | None = None
    bits_per_byte: Number | None = None
    perplexity_per_base_token: Number | None = None


class WaterfallStep(Part):
    """The model after one more step towards the file, in bits per byte.

    Attributes:
        estimated: by how much the budget of pruning expected this step to raise them.
    """

    name: str
    bits_per_byte: Number
    estimated: Number | None = None


class Waterfall(Part):
    """From the dense model, first, to the first shipped file, last; all on the same validation windows.

    Attributes:
        steps: in the order of the build; "recovery" and "quantization" where the build did that.
        windows: how many.
        together: what is one step, since the model was on disk or the refit ties the parts together.
    """

    steps: tuple[WaterfallStep, ...] = ()
    windows: int | None = None
    together: tuple[str, ...] = ()

    def changes(self) -> list[tuple[str, float]]:
        """Each step but the dense model, and by how much it changed the bits per byte."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return [(after.name, after.bits_per_byte - before.bits_per_byte) for before, after in pairs]


class QualityWarning(Part):
    """A shipped file that scored worse than the dense F16 model as published, on the test windows.

    Attributes:
        label: the file's.
        difference: in bits per byte, above 0.
        stderr: of the difference, window by window; None where that is not known.
        sure: whether the difference is more than twice that.
        tokens: of recovery that would make up for it, estimated; None where no amount is likely to.
        time: the shortest `--time` that has them, likewise.
        sparsity: the most `--sparsity` that would, likewise.
        text: all that in plain words.
    """

    label: str
    difference: Number
    stderr: Number | None = None
    sure: bool = True
    tokens: int | None = None
    time: str | None = None
    sparsity: Number | None = None
    text: str = ""


class QualityByStage(Part):
    """Quality on validation text after each stage."""

    dense: ValidationQuality = ValidationQuality()
    pruned: ValidationQuality = ValidationQuality()
    recovered: ValidationQuality = ValidationQuality()


class Parity(Part):
    """A file against the checkpoint, KL in nats; `texts` counts those whose token ids were compared."""

    kl_mean: Number
    kl_max: Number
    argmax_agreement: Number
    bits_ratio: Number
    tokens: int
    texts: int | None = None


class Window(Part):
    """A window's score; `nll` in nats."""

    nll: Number
    tokens: int | None = None
    bytes: int
    base_tokens: int | None = None


class Quality(Part):
    """A file's quality on the test windows; `stderr` of the bits per byte."""

    bits_per_byte: Number | None = None
    stderr: Number | None = None
    perplexity_per_base_token: Number | None = None
    nll: Number | None = None
    tokens: int | None = None
    bytes: int | None = None
    base_tokens: int | None = None
    windows: int | None = None
    per_window: tuple[Window, ...] = ()


class Percentiles(Part):
    """Of a time in milliseconds."""

    mean: Number | None = None
    p50: Number | None = None
    p90: Number | None = None
    p99: Number | None = None


class Speed(Part):
    """A file's speed and memory in a fresh process."""

    load_seconds: Number | None = None
    ttft_ms: Percentiles = Percentiles()
    prefill_tokens_per_second: Number | None = None
    decode_tokens_per_second: Number | None = None
    itl_ms: Percentiles = Percentiles()
    peak_rss_mb: Number | None = None
    threads: int | None = None


class ModelFile(Part):
    """A measured model file; of a shipped one, what was tried in the choice of its type.

    Attributes:
        role: "dense-f16", "dense-quantized" or "shipped".
        quantization: its type as people read it; of a mix, the best single type.
        mix: the types of a mix, as patterns; empty where all matrices have one type.
        validation: of a shipped one, its quality on the validation windows too.
    """

    label: str
    role: str
    quantization: str | None = None
    file: str | None = None
    bytes: int | None = None
    parameters: int | None = None
    sha256: str | None = None
    architecture: str | None = None
    quality: Quality = Quality()
    validation: ValidationQuality = ValidationQuality()
    speed: Speed = Speed()
    target: str | None = None
    tried: dict[str, dict[str, Number]] = {}
    mix: dict[str, str] = {}


class HistoryStep(Part):
    """A step of recovery: tokens so far; quality where it was scored, loss and rate where it was logged."""

    step: int | None = None
    tokens: int
    bits_per_byte: Number | None = None
    perplexity_per_base_token: Number | None = None
    tokens_per_second: Number | None = None
    loss: Number | None = None
    lr: Number | None = None


class Recovery(Part):
    """The fine-tuning after pruning; `matmul_fraction` of the machine's measured `matmul_flops`.

    `grid`: the type whose numbers it trained, and so the scores "after" are of.
    """

    tokens: int | None = None
    seconds: Number | None = None
    training_seconds: Number | None = None
    tokens_per_second: Number | None = None
    matmul_flops: Number | None = None
    matmul_fraction: Number | None = None
    compiled: bool | None = None
    grid: str | None = None
    teacher_share: Number | None = None
    taught_tokens: int | None = None
    lora_rank: int | None = None
    stopped: str | None = None
    best_step: int | None = None
    before: ValidationQuality = ValidationQuality()
    after: ValidationQuality = ValidationQuality()
    history: tuple[HistoryStep, ...] = ()


class TimeBudget(Part):
    """What `--time` chose, in seconds and tokens; `passes` of recovery over the training text.

    Attributes:
        asked: for the whole build, downloads left out.
        reading_tokens_per_second: of the dense model, as measured.
        training_tokens_per_second: of the pruned model with what it learns from, as measured.
        seconds: part of the build -> what it is to take.
    """

    asked: int = 0
    calibration_tokens: int = 0
    recovery_tokens: int = 0
    reading_tokens_per_second: Number = 0
    training_tokens_per_second: Number = 0
    passes: Number = 0
    seconds: dict[str, Number] = {}


class StageFacts(Part):
    """What a stage took when it was made; `reused` if it was cached in this build."""

    name: str
    seconds: Number | None = None
    peak_rss_mb: Number | None = None
    reused: bool = False


class BuildReport(Part):
    """All of it; only `name` and `models` are required."""

    format: int = 1
    name: str
    created: str | None = None
    minigpt_edge: str | None = None
    command: str | None = None
    base_model: BaseModelFacts = BaseModelFacts()
    domain: str | None = None
    corpus: Corpus = Corpus()
    sparsity: Sparsity = Sparsity()
    quality_torch: QualityByStage = QualityByStage()
    waterfall: Waterfall = Waterfall()
    warnings: tuple[QualityWarning, ...] = ()
    parity: dict[str, Parity] = {}
    models: tuple[ModelFile, ...]
    stages: tuple[StageFacts, ...] = ()
    environment: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    recovery: Recovery = Recovery()
    time: TimeBudget = TimeBudget()
    ratios: dict[str, Number] = {}

    def by_role(self, role: str) -> list[ModelFile]:
        """The files in a role, see `ModelFile`."""
        return [model for model in self.models if model.role == role]

    def compared(self) -> tuple[ModelFile, ModelFile, ModelFile]:
        """The first shipped file, the dense one at F16, the dense one at its type; empty where missing."""
        none = ModelFile(label="", role="")
        shipped, dense = ((self.by_role(role) or [none])[0] for role in ("shipped", "dense-f16"))
        kind = shipped.quantization
        twins = [model for model in self.by_role("dense-quantized") if kind and model.quantization == kind]
        return shipped, dense, (twins or [none])[0]


def read_report(path: Path) -> BuildReport:
    """Read a report.json.

    Raises:
        EdgeError: it is missing, is not JSON, or is not a report of a build.
    """
    try:
        return BuildReport.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise EdgeError(
            f"{path} is not the report of a build ({where}: {first['msg'].lower()})", "build the bundle again"
        ) from error
