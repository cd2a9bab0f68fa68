"""From a socket to a running server."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import signal
import socket
from contextlib import suppress
from typing import Any

import click

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.serve.app import Settings, make_app
from minigpt_edge_runtime.serve.worker import Worker

GRACE = 5  # seconds that answers under way have to end after Ctrl-C


def load_library() -> Any:
    """The uvicorn module.

    Raises:
        EdgeError: it or starlette is not installed.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        hint = 'pip install "minigpt-edge-runtime[serve]"'
        raise EdgeError(f"serving needs starlette and uvicorn ({error})", hint) from error
    return uvicorn


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        EdgeError: the port is in use, or the host is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise EdgeError(f"{host} is not an address ({error.strerror})", "use --host 127.0.0.1") from error
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        hint = "choose another --port, 0 takes a free one"
        if error.errno == errno.EADDRINUSE:
            raise EdgeError(f"port {port} is in use", hint) from error
        raise EdgeError(f"can't listen on {host} port {port} ({error.strerror})", hint) from error
    return listener


def loopback_hosts(listener: socket.socket) -> frozenset[str] | None:
    """The Host headers that mean this machine; None if others can reach the socket."""
    address = listener.getsockname()[0]
    if not ipaddress.ip_address(address).is_loopback:
        return None
    return frozenset({"localhost", "127.0.0.1", "::1", address})


def serve(listener: socket.socket, worker: Worker, settings: Settings) -> None:
    """Answer requests until Ctrl-C or SIGTERM, then return."""
    uvicorn = load_library()

    class Server(uvicorn.Server):  # type: ignore[misc, name-defined]
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            ending = asyncio.create_task(worker.stop(GRACE))
            await super().shutdown(sockets)
            await worker.stop(0)  # a second Ctrl-C does not wait
            await ending

    config = uvicorn.Config(
        make_app(worker, settings),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
    )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        click.echo(f"serving {settings.model} at {url} (Ctrl-C ends)", err=True)
        with suppress(KeyboardInterrupt):  # uvicorn raises it again after it has shut down
            Server(config).run(sockets=[listener])
        click.echo("stopped", err=True)
    finally:
        signal.signal(signal.SIGTERM, before)
