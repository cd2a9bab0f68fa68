"""Options that several commands have."""

from __future__ import annotations

import click

FILE = click.option("--file", help="Which of the bundle's model files (default: its first).")
THREADS = click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all).")
CONTEXT_LENGTH = click.option(
    "--context-length", type=click.IntRange(1), help="Tokens held at once (default: the model's, up to 2048)."
)
NO_VERIFY = click.option(
    "--no-verify", is_flag=True, help="Don't compare a bundle's files with its checksums before loading it."
)
