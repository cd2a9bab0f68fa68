"""serve: OpenAI-compatible requests, answered on this machine."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from minigpt_edge_runtime.commands.options import CONTEXT_LENGTH, FILE, NO_VERIFY, THREADS
from minigpt_edge_runtime.errors import UsageError


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@FILE
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: a free one.")
@click.option(
    "--api-key",
    envvar="MINIGPT_EDGE_API_KEY",
    show_envvar=True,
    help="Ask for this key. The variable keeps it out of the process list.",
)
@click.option(
    "--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="The longest answer."
)
@click.option("--max-request-bytes", type=click.IntRange(1), default=2**20, show_default=True)
@click.option(
    "--queue",
    type=click.IntRange(0),
    default=8,
    show_default=True,
    help="Requests that may wait for their turn.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=600,
    show_default=True,
    help="Seconds a request may take, waiting included.",
)
@CONTEXT_LENGTH
@THREADS
@NO_VERIFY
def serve(bundle: Path, file: str | None, host: str, port: int, api_key: str | None, **options: Any) -> None:
    """Answer OpenAI-compatible requests with BUNDLE (a directory or a model file) until Ctrl-C.

    Paths: /v1/chat/completions, /v1/completions, /v1/models, /health.
    """
    from minigpt_edge_runtime.bundle.open import open_bundle
    from minigpt_edge_runtime.engines.open import open_engine
    from minigpt_edge_runtime.serve import server
    from minigpt_edge_runtime.serve.app import Settings
    from minigpt_edge_runtime.serve.worker import Worker

    if api_key is not None and not api_key.strip():
        raise UsageError("--api-key is empty", "leave it out to ask for none")
    server.load_library()
    found = open_bundle(bundle, file, check=not options["no_verify"])
    with (
        server.listen(host, port) as listener,
        open_engine(found.model_path, options["context_length"], options["threads"]) as engine,
    ):
        hosts = server.loopback_hosts(listener)
        if hosts is None and api_key is None:
            click.echo(
                f"warning: whoever reaches {host} can use this server, there is no --api-key", err=True
            )
        settings = Settings(
            model=found.manifest.get("name") or _name(found.model_path),
            document_start=found.document_start,
            hosts=hosts,
            api_key=api_key,
            max_tokens=options["max_tokens"],
            max_request_bytes=options["max_request_bytes"],
        )
        with closing(Worker(engine, options["queue"], options["timeout"])) as worker:
            server.serve(listener, worker, settings)


def _name(model: Path) -> str:
    """What to call a model outside a bundle; an ONNX model's name is its directory's."""
    return model.resolve().parent.name if model.suffix.lower() == ".onnx" else model.stem
