"""The application on a socket, until Ctrl-C; requests under way are answered first."""

from __future__ import annotations

import ipaddress
import math
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from petseg.config import ServeConfig
from petseg.errors import PetsegError
from petseg.serve.app import make_app


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach an address.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(config: ServeConfig, on_ready: Callable[[str], None] = lambda url: None) -> None:
    """Serves until it is told to stop; `on_ready` gets the page's address once photos are taken.

    Raises:
        PetsegError: the address cannot be had.
    """
    with _listening(config) as listening:
        host, port = listening.getsockname()[:2]
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104
        settings = uvicorn.Config(
            make_app(config, loopback=is_loopback(config.host)),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(config.seconds),
        )
        server = _Announced(settings, lambda: on_ready(f"http://{shown}:{port}"))
        with suppress(KeyboardInterrupt):  # raised again by uvicorn when all is answered
            server.run(sockets=[listening])


def _listening(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=1024)
    except OSError as error:
        raise PetsegError(
            f"{config.host}:{config.port} cannot be had ({error.strerror or error}); choose another with --port"
        ) from None


class _Announced(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()
