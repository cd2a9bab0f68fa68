"""The modules whose source decides what a stage makes: a change in them makes the stage anew."""

from __future__ import annotations

PRUNE_CODE = (
    "minigpt_edge.allocate",
    "minigpt_edge.archs",
    "minigpt_edge.archs.base",
    "minigpt_edge.attention",
    "minigpt_edge.backward",
    "minigpt_edge.calibrate",
    "minigpt_edge.checkpoint",
    "minigpt_edge.evaluate.probe",
    "minigpt_edge.moments",
    "minigpt_edge.parallel",
    "minigpt_edge.plan",
    "minigpt_edge.precision",
    "minigpt_edge.prune",  # what a method reads and compensates
    "minigpt_edge.prune.least_squares",  # the ridges serve every refit
    "minigpt_edge.prune.masks",
    "minigpt_edge.resident",
    "minigpt_edge.shrink.decide",
    "minigpt_edge.shrink.prepare",
    "minigpt_edge.shrink.trim",
    "minigpt_edge.shrink.vocabulary",
    "minigpt_edge.shrink.weights",
    "minigpt_edge.sizing",
    "minigpt_edge.streams",
)
RECOVER_CODE = (
    "minigpt_edge.attention",
    "minigpt_edge.checkpoint",
    "minigpt_edge.chunked_loss",
    "minigpt_edge.fast_llama",
    "minigpt_edge.finetune",
    "minigpt_edge.lora",
    "minigpt_edge.objective",
    "minigpt_edge.packing",
    "minigpt_edge.parallel",
    "minigpt_edge.precision",
    "minigpt_edge.resident",
    "minigpt_edge.sharding",
    "minigpt_edge.teacher",
    "minigpt_edge.trainer",
    "minigpt_edge.training_checkpoint",
    "minigpt_edge.training_settings",
)
EVALUATE_CODE = (
    "minigpt_edge.attention",
    "minigpt_edge.checkpoint",
    "minigpt_edge.chunked_loss",
    "minigpt_edge.evaluate.perplexity",
    "minigpt_edge.precision",
    "minigpt_edge.resident",
)
CORPUS_CODE = (
    *(f"minigpt_edge.{name}" for name in ("corpus", "documents", "package_readers", "pairs", "windows")),
)
