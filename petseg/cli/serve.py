"""`petseg serve`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

ALLOWED_HELP = "A name that a proxy asks under. Repeatable."
RUN_HELP = "Serve a trained run in place of the shipped models; needs the extra `export`."
SET_HELP = "Change a limit: upload_bytes, pixels, concurrent, queue, held_bytes or seconds. Repeatable."


def serve(
    run: Annotated[Path | None, typer.Option(help=RUN_HELP, show_default=False)] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free one.", show_default="7860")] = None,
    allowed_host: Annotated[list[str] | None, typer.Option(help=ALLOWED_HELP, show_default="this machine's")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help=SET_HELP)] = None,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> None:
    """Open a page that tries models on your photo, and an API. Ctrl-C stops it."""
    import threading
    import webbrowser

    from petseg.config import load_serving

    given = {"host": host, "port": port, "allowed_hosts": allowed_host, "run": run and str(run)}
    config = load_serving(settings or (), **{name: value for name, value in given.items() if value is not None})
    from petseg.serve.server import is_loopback
    from petseg.serve.server import serve as serve_pages

    if not is_loopback(config.host):
        print(f"petseg: warning: {config.host} lets others on the network in; there is no password", file=sys.stderr)

    def ready(url: str) -> None:
        print(f"{url}  (Ctrl-C stops it)", flush=True)
        # a browser that is text would take the terminal
        screen = sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        if show and screen:
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

    serve_pages(config, ready)
