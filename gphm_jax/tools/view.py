"""Shows an avatar, or the heads of a prior, in the browser: the mouse turns them, sliders move their faces.

    python -m gphm_jax.tools.view --avatar=DIR|--prior=WORKDIR [--drive=VIDEO] [--host=127.0.0.1] [--port=8080]

The pictures are drawn by this process, with the refine network; the page only shows them. Nobody but this machine
can open the page unless --host says otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from absl import flags

from gphm_jax import runtime
from gphm_jax.capture.landmarks import imported
from gphm_jax.errors import InputError, run_main
from gphm_jax.paths import expanded
from gphm_jax.viewer import exhibit


def main(argv: Sequence[str]) -> None:
    """Serves the page until it is interrupted."""
    del argv
    options = flags.FLAGS
    if bool(options.avatar) == bool(options.prior):
        raise InputError(
            "give --avatar, the folder of a fitted avatar, or --prior, the workdir of a training run"
        )
    imported("viser", "view")
    from gphm_jax.viewer import page, server

    server.check_free(options.host, options.port)
    runtime.start()
    drive = expanded(options.drive) if options.drive else None
    if options.avatar:
        shown = exhibit.of_avatar(expanded(options.avatar), drive)
    else:
        shown = exhibit.of_prior(expanded(options.prior), drive)
    opened = server.open_server(options.host, options.port, shown.name, shown.start)
    server.serve(opened, lambda client: page.Page(client, shown).close)
    print(f"{server.address(options.host, options.port)} shows {shown.name}; Ctrl-C ends it", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        opened.stop()
        shown.faces.close()


def define_flags() -> None:
    """Only when run as a program: two tools may share a flag's name."""
    flags.DEFINE_string("avatar", None, "Folder of a fitted avatar, or of its fit.")
    flags.DEFINE_string("prior", None, "Workdir of a head model's training: all its people, and new ones.")
    flags.DEFINE_string("drive", None, "A video of one person, or a prepared identity folder, to play.")
    flags.DEFINE_string(
        "host", "127.0.0.1", "Address to serve at; 0.0.0.0 shows the head to the whole network."
    )
    flags.DEFINE_integer("port", 8080, "Port to serve at.")


if __name__ == "__main__":
    define_flags()
    run_main(main)
