"""Writes an avatar for other programs: splats, points, a mesh, or a page that plays it in any browser.

    python -m gphm_jax.tools.export --avatar=DIR --format=ply|spz|gltf|html|points|mesh --out=FILE
        [--expression=FACE_OR_FOLDER] [--frames=N] [--fps=N] [--prior=WORKDIR] [--axes=y_up|y_down] [--licence=TEXT]

All show the splats' coarse colour, without the refine network; each file says so, and what that costs. A folder of
face images makes a sequence: numbered files (ply, spz, points, mesh), an animation of the positions (gltf), a clip
(html). `mesh` needs the prior that the avatar was fitted with: its mean surface is moved and coloured by the splats.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
from absl import flags, logging
from jaxtyping import Array, Float
from tqdm import tqdm

from gphm_jax import files, runtime
from gphm_jax.avatar import Avatar
from gphm_jax.errors import InputError, run_main
from gphm_jax.export import cloud, expressions, gltf, page, ply, spz
from gphm_jax.export.cloud import SplatCloud
from gphm_jax.export.coarse import CoarseStatement, coarse_statement
from gphm_jax.export.surface import mean_head, surface
from gphm_jax.paths import expanded
from gphm_jax.report import size_in_bytes

_SUFFIX = {"ply": ".ply", "spz": ".spz", "gltf": ".glb", "html": ".html", "points": ".ply", "mesh": ".glb"}
_AXES = {"ply": "y_down", "points": "y_up"}  # as viewers of each expect; the other formats fix theirs
_PAGE_FRAMES = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to export of an avatar, checked."""

    format: str
    out: pathlib.Path
    expression: pathlib.Path | None = None  # a face image or a folder of them; None: the avatar's habit
    frames: int = 0  # of the folder; 0: all
    fps: float = 10.0
    prior: pathlib.Path | None = None
    axes: str = ""


def export(avatar: Avatar, request: Request, statement: CoarseStatement) -> list[pathlib.Path]:
    """Writes the file, or the files of a sequence, each whole or not at all; their paths."""
    codes = avatar.habits.expression[None]
    if request.expression is not None:
        most = _PAGE_FRAMES if request.format == "html" else 0
        codes = expressions.encoded(avatar, request.expression, request.frames or most)
    if request.format == "html":
        clip = None if request.expression is None else codes
        files.write_text(request.out, _page(avatar, clip, request.fps, statement))
        return [request.out]
    moments = cloud.clouds(avatar, codes)
    if request.format == "gltf":
        _write(request.out, gltf.splats(list(moments), statement, fps=request.fps))
        return [request.out]
    encode = _encoder(avatar, request, statement)
    written = []
    frames = zip(_numbered(request.out, len(codes)), moments, strict=True)
    for path, moment in tqdm(frames, "export", len(codes), disable=len(codes) == 1):
        _write(path, encode(moment))
        written.append(path)
        if request.format == "spz":  # the format has no room for metadata
            written.append(path.with_name(path.name + ".json"))
            files.write_json(written[-1], statement.fields)
    return written


def _encoder(avatar: Avatar, request: Request, statement: CoarseStatement) -> Callable[[SplatCloud], bytes]:
    """What turns one moment into one file."""
    if request.format == "spz":
        return spz.splats
    if request.format == "mesh":
        assert request.prior is not None  # make_request has asked for it
        head = mean_head(request.prior, avatar)
        return lambda moment: gltf.mesh(surface(head, moment), statement)
    axes = request.axes or _AXES[request.format]
    lines = (*statement.lines, f"axes: {axes.replace('_', ' ')}, right-handed; lengths in head lengths")
    write = ply.splats if request.format == "ply" else ply.points
    return lambda moment: write(moment if axes == "y_up" else moment.y_down(), lines)


def _page(avatar: Avatar, clip: Float[Array, "t z"] | None, fps: float, statement: CoarseStatement) -> str:
    codes = expressions.named(avatar)
    performance = page.Performance(
        rest=next(cloud.clouds(avatar, avatar.habits.expression[None])),
        named=dict(zip(codes, cloud.clouds(avatar, jnp.stack([*codes.values()])), strict=True)),
        clip=[] if clip is None else list(cloud.clouds(avatar, clip)),
        fps=fps,
    )
    telling = performance.telling()
    if silent := ", ".join(name for name in codes if name not in telling.named):
        logging.info("no slider for %s: this head hardly moves with it", silent)
    return page.page(telling, avatar.habits.camera, avatar.spec.image_size, statement)


def _numbered(out: pathlib.Path, count: int) -> Iterator[pathlib.Path]:
    if count == 1:
        yield out
    else:
        yield from (out.with_name(f"{out.stem}_{index:04d}{out.suffix}") for index in range(1, count + 1))


def _write(path: pathlib.Path, data: bytes) -> None:
    with files.atomic_path(path) as partial:
        partial.write_bytes(data)


def make_request() -> Request:
    """The flags, checked as far as no work is needed for it; `InputError` for what is wrong."""
    options = flags.FLAGS
    for name, what in (
        ("avatar", "the folder of a fitted avatar"),
        ("format", "what to write"),
        ("out", "the file"),
    ):
        if not getattr(options, name):
            raise InputError(f"--{name} is missing: give {what}")
    out, suffix = expanded(options.out), _SUFFIX[options.format]
    if out.suffix.lower() != suffix:
        raise InputError(f"--out={out}: a file of --format={options.format} ends in {suffix}")
    if options.prior and options.format != "mesh":
        raise InputError(f"--prior belongs to --format=mesh, not {options.format}")
    if options.format == "mesh" and not options.prior:
        raise InputError(
            "--format=mesh needs --prior=WORKDIR, the training run that the avatar was fitted with: an avatar holds "
            "splats alone, and the prior has the surface they began on"
        )
    if options.axes and options.format not in _AXES:
        raise InputError(f"--axes belongs to --format=ply and points: {options.format} fixes its own")
    if options.frames and not options.expression:
        raise InputError("--frames needs --expression, a folder of face images")
    if options.frames < 0 or not 0.1 <= options.fps <= 240:
        raise InputError("--frames must not be negative, and --fps lie between 0.1 and 240")
    files.check_writable(out)
    return Request(
        format=options.format,
        out=out,
        expression=expanded(options.expression) if options.expression else None,
        frames=options.frames,
        fps=options.fps,
        prior=expanded(options.prior) if options.prior else None,
        axes=options.axes or "",
    )


def main(argv: Sequence[str]) -> None:
    """Exports what the flags ask for."""
    del argv
    request = make_request()
    runtime.start()
    folder = expanded(flags.FLAGS.avatar)
    avatar = Avatar.load(folder)
    statement = coarse_statement(avatar, Avatar.home(folder).resolve(), flags.FLAGS.licence)
    for path in export(avatar, request, statement):
        print(f"{path}: {size_in_bytes(path.stat().st_size)}")
    print(f"without the refine network: {statement.cost}")


def define_flags() -> None:
    """Only when run as a program: two tools may share a flag's name."""
    flags.DEFINE_string("avatar", None, "Folder of a fitted avatar, or of its fit.")
    flags.DEFINE_enum("format", None, list(_SUFFIX), "What to write.")
    flags.DEFINE_string("out", None, "The file; of a sequence, FILE_0001 and so on.")
    flags.DEFINE_string("expression", None, "A face image with the expression, or a folder of them in order.")
    flags.DEFINE_integer(
        "frames", 0, "Images of the folder to take, spread evenly; 0: all (html: at most 30)."
    )
    flags.DEFINE_float("fps", 10.0, "Frames a second of a sequence (gltf, html).")
    flags.DEFINE_string("prior", None, "Workdir of the avatar's prior (mesh).")
    flags.DEFINE_enum(
        "axes", None, ["y_up", "y_down"], "Axes of ply (default y_down) and points (default y_up)."
    )
    flags.DEFINE_string("licence", "", "The licence that the file is to name.")


if __name__ == "__main__":
    define_flags()
    run_main(main)
