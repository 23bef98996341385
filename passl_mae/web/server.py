"""The page on a port: nothing in it, and nothing behind it, asks another machine."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator

# Read when Gradio is imported.
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
}
# A browser refuses what these do not name, whatever a version of Gradio would like to load.
OWN_ONLY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'"
)
NEEDED = (
    "the web page needs Gradio, and Python 3.10 or later for it: pip install 'passl_mae[web]', or "
    "pip install -e '.[web]' in a checkout"
)


def check_gradio() -> None:
    """Imports Gradio with all its reporting turned off.

    Raises:
        ModuleNotFoundError: it is not installed; says how to install it.
        ValueError: a version that this page was not written for.
    """
    os.environ.update(QUIET)
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ModuleNotFoundError(NEEDED, name="gradio") from None
    if gradio.__version__.split(".")[0] != "6":
        raise ValueError(
            f"this page was written for Gradio 6, found {gradio.__version__}: {NEEDED}"
        )


def check_port(host: str, port: int) -> None:
    """Raises ValueError where nothing can listen there."""
    if not 0 < port < 1 << 16:
        raise ValueError(f"--port must be from 1 to 65535, got {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host}, port {port} ({error.strerror}): choose another --port, or "
            "another --host"
        ) from None


@contextlib.contextmanager
def own_files() -> Iterator[None]:
    """Visitors' files lie in a folder that is gone afterwards, when terminated, too."""
    with tempfile.TemporaryDirectory(prefix="passl_mae_web_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def serve(page, host: str, port: int, max_upload: str) -> None:
    """Shows a `gr.Blocks` until the process is interrupted.

    Args:
        max_upload: as Gradio takes it, e.g. "10mb".
    """
    import fastapi
    import gradio as gr
    import uvicorn

    from passl_mae.web.page import STYLE, theme

    app = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        server_name=host,
        server_port=port,
        show_error=False,  # only what the page says on purpose
        max_file_size=max_upload,
        ssr_mode=False,
        footer_links=[],
        theme=theme(),
        css=STYLE,
    )
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{port}   (Ctrl-C ends it)", flush=True)
    config = uvicorn.Config(
        _with_headers(app),
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=1,  # an open page keeps a connection: it is not waited for,
    )
    server = uvicorn.Server(config)
    # and its end is no error.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
    server.run()


def _with_headers(app: Callable) -> Callable:
    """The ASGI application, its answers with `OWN_ONLY`."""
    own = [
        (b"content-security-policy", OWN_ONLY.encode()),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    ]

    async def wrapped(scope, receive, send) -> None:
        async def send_with(message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        await app(scope, receive, send_with)

    return wrapped
