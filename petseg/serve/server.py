"""The application on a socket, until Ctrl-C or SIGTERM; requests under way are answered first."""

import asyncio
import errno
import ipaddress
import math
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from petseg.config import ServeConfig
from petseg.errors import PetsegError
from petseg.serve.app import LOCAL, make_app

HEAD_SECONDS = 30.0  # longest time that a client may take to send a request's head; uvicorn would wait for ever
HEAD_BYTES = 64_000  # largest head: address and headers; uvicorn would keep any
REFUSED_SECONDS = 10.0  # longest time that a refused client may go on sending: closed at once, it loses the answer
STOP_SECONDS = 5.0  # longest time that an upload may still take once the server stops
SPARE_FILES = 64  # of the files that the process may open: not for connections


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(config: ServeConfig, on_ready: Callable[[str], None] = lambda url: None) -> None:
    """Serves until it is stopped; `on_ready` gets the page's address once it listens and can be stopped."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listening = socket.create_server((config.host, config.port), family=family, backlog=1024)
    except OSError as error:
        option = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        problem = f"cannot be had ({error.strerror or error}); choose another with {option}"
        raise PetsegError(f"{config.host}:{config.port} {problem}") from None
    with listening:
        host, port = listening.getsockname()[:2]
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        named = is_loopback(config.host) or config.allowed_hosts
        hosts = [*LOCAL, shown, f"[{shown}]", *config.allowed_hosts] if named else ["*"]
        shown = f"[{shown}]" if ":" in shown else shown
        settings = uvicorn.Config(
            make_app(config, hosts=hosts),
            http=partial(_Bounded, seconds=config.seconds),  # type: ignore[arg-type]
            log_level="error",  # warnings are of what clients send: a line each
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(config.seconds),
        )
        with suppress(KeyboardInterrupt):  # before it runs
            _Server(settings, partial(on_ready, f"http://{shown}:{port}")).run(sockets=[listening])


class _Server(uvicorn.Server):
    """A server whose stop by a signal is no error, and at once at a second Ctrl-C."""

    def __init__(self, settings: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(settings)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for a signal; uvicorn's would raise it again when all is answered."""
        if self.should_exit and sig == signal.SIGINT:
            os._exit(130)  # any other end waits for the threads that compute
        self.should_exit = True


class _Bounded(HttpToolsProtocol):
    """A connection that is closed when its client is slow over a head, sends a large one, or more than was taken.

    It is dropped, with what is left of an answer, when its client has not read that in twice a request's `seconds`.
    """

    def __init__(self, *arguments: Any, seconds: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_seconds, self._read_seconds = min(HEAD_SECONDS, seconds), 2 * seconds
        self._unread: asyncio.TimerHandle | None = None  # drops the connection; None while all was read
        self._head: asyncio.TimerHandle | None = None  # closes the connection; None while no head is awaited
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # writing pauses at the first byte that the client does not take
        if len(self.connections) > most_connections():
            transport.abort()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        self._was_read()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self._read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._was_read()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.send_400_response(f"The request's head is larger than {HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()
        self.cycle.transport = _Lingering(self.transport, self.cycle, self.loop)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self.cycle.response_complete and not self.cycle.keep_alive:
            self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # it was answered before it had sent all
        if self.cycle.response_complete and self.cycle.more_body and self.cycle.keep_alive:
            self.loop.call_later(1, self.transport.close)

    def shutdown(self) -> None:
        super().shutdown()
        if not self.transport.is_closing():
            self.loop.call_later(STOP_SECONDS, self._drop_upload)

    def _drop_upload(self) -> None:
        if self.cycle.more_body:
            self.transport.abort()

    def _await_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(self._head_seconds, self.transport.close)
            self._head_bytes = 0

    def _head_came(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _was_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


class _Lingering(asyncio.Transport):
    """What an answer is written to: it closes once the client has sent all, or after `REFUSED_SECONDS`."""

    def __init__(
        self, transport: asyncio.Transport, cycle: RequestResponseCycle, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__()
        self._transport, self._cycle, self._loop = transport, cycle, loop

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._transport.is_closing():  # uvloop raises then; uvicorn marks the last of several requests alone
            self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        if self._cycle.more_body and not self._transport.is_closing():
            self._transport.write_eof()
            self._loop.call_later(REFUSED_SECONDS, self._transport.close)
        else:
            self._transport.close()


def most_connections() -> int:
    """Returns how many connections there may be at once: those that the process may open files for."""
    try:
        import resource
    except ImportError:  # Windows
        return 500
    return int(resource.getrlimit(resource.RLIMIT_NOFILE)[0]) - SPARE_FILES
