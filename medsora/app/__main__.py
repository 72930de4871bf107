"""`python -m medsora.app [--model RUN]`: start the page and print its address."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib.util import find_spec

from medsora.errors import BadInput, bad_input_from_errors
from medsora.runtime.exit import exit_with_status

DEFAULT_MODEL = "phantom"
EXIT_STATUSES = "exit status: 0 stopped by Ctrl-C, 1 error, 2 invalid input"


def make_parser(prog: str = "python -m medsora.app") -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Sample a trained model in a browser, download its videos, compare two models. "
        "Only this machine can open the page unless --host is set.",
        epilog=EXIT_STATUSES,
    )
    add = parser.add_argument
    model = "a run with all its checkpoints, a saved pipeline, a hub name or a model that comes with "
    model += f"MedSora; may be given often (default: {DEFAULT_MODEL})"
    add("--model", action="append", metavar="RUN_OR_FOLDER", help=model)
    add("--host", default="127.0.0.1", help="the address to listen on; 0.0.0.0: everybody who can reach it")
    name = "a name that the page is opened by, besides addresses and localhost; may be given often"
    add("--name", action="append", default=[], help=name)
    add("--port", type=int, default=7860, help="the port to listen on (default: 7860)")
    add("--device", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one, on a Mac mps)")
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = "python -m medsora.app") -> None:
    """Serve the page until Ctrl-C."""
    options = make_parser(prog).parse_args(arguments)
    if find_spec("gradio") is None:
        raise BadInput("the page needs Gradio, which is not installed: pip install 'medsora[app]'.")
    if not 0 < options.port < 65536:
        raise BadInput(f"--port is {options.port} but must lie between 1 and 65535.")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from medsora.app.models import Models
    from medsora.runtime.processes import join_group

    device = options.device or join_group().device.type
    with bad_input_from_errors():
        try:
            models = Models(options.model or [DEFAULT_MODEL], device)
            models.pipeline(models.names[0])
        except RuntimeError as error:
            raise BadInput(f"the device {device} cannot be used ({str(error).splitlines()[0]}).") from error
    from starlette.middleware import Middleware

    from medsora.app.gate import MAX_QUEUED, MAX_UPLOAD_BYTES, Gate, limited
    from medsora.app.page import CSS, THEME, build_page

    page = build_page(models).queue(api_open=False, max_size=MAX_QUEUED)
    try:
        page.launch(
            server_name=options.host,
            server_port=options.port,
            theme=THEME,
            css=CSS,
            quiet=True,
            share=False,
            ssr_mode=False,
            footer_links=[],
            max_file_size=MAX_UPLOAD_BYTES,
            app_kwargs={"middleware": [Middleware(Gate, names=[options.host, *options.name])]},
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise BadInput(
            f"port {options.port} of {options.host} is not free; choose another --port."
        ) from error
    served = page.server.config
    served.http_protocol_class = limited(served.http_protocol_class)
    print(f"open http://{options.host}:{options.port} (stop with Ctrl-C)", flush=True)
    try:
        page.block_thread()
    finally:
        page.close()


if __name__ == "__main__":
    exit_with_status(main)
