"""Draws a head with other expressions, and a head model's people, known and made up.

    python -m gphm_jax.tools.edit --avatar=DIR | --prior=WORKDIR --out=FILE.png|.jpg|.webp|.mp4
        [--scores=jawOpen=0.7,mouthSmile=0.5 | FILE.json | list] [--image=PHOTO] [--face=CUT_OUT] [--from_avatar=DIR]
        [--identity=NAME] [--sample=N] [--grid] [--interpolate] [--frames=N] [--fps=N] [--seed=N]

Each of --scores, --image, --face, --from_avatar and --identity may be given several times. One expression on one head
makes its picture; several make a sheet, a row a head. --interpolate goes from the first expression to the second (from
the head at rest to the only one), or from the first person to the second: a film that starts over, or a strip. --grid
is the paper's figure 5: two sampled people under five expressions of training frames. --scores=list names the scores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from absl import flags
from flax import nnx
from jaxtyping import Float, UInt8
from tqdm import tqdm

from gphm_jax import editing, runtime
from gphm_jax.avatar import Avatar
from gphm_jax.capture.face_photo import FaceReader
from gphm_jax.data import images
from gphm_jax.data.files import listed
from gphm_jax.editing import Expression
from gphm_jax.errors import InputError, run_main
from gphm_jax.files import check_writable
from gphm_jax.heads import Heads, load_heads
from gphm_jax.paths import expanded
from gphm_jax.provenance import COMPOSITE, RENDERED, Statement, save_image
from gphm_jax.report import size_in_bytes
from gphm_jax.scores import NAMES, read_scores, score_vector
from gphm_jax.video import write_video

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_STRIP, _FILM = 7, 60  # frames of a transition
_GRID = (2, 5)  # people and expressions of the paper's figure


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """What to draw, checked as far as no work is needed for it."""

    out: pathlib.Path
    avatar: pathlib.Path | None = None  # this, or `prior`
    prior: pathlib.Path | None = None
    scores: Sequence[tuple[str, Float[np.ndarray, "52"]]] = ()  # label and vector
    photos: Sequence[pathlib.Path] = ()
    faces: Sequence[pathlib.Path] = ()  # cut out already
    avatars: Sequence[pathlib.Path] = ()  # whose expressions to take
    identities: Sequence[str] = ()
    sample: int = 0  # people made up
    grid: bool = False
    interpolate: bool = False
    frames: int = 0  # of a transition; 0: as many as suit
    fps: float = 25.0
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class People:
    """The heads to draw, by label; of a head model, it and the identity codes too."""

    heads: dict[str, Avatar]
    prior: Heads | None = None
    codes: Sequence[Float[np.ndarray, "z"]] = ()

    @property
    def first(self) -> Avatar:
        """The head that stands for all where one is asked for."""
        return next(iter(self.heads.values()))


def edit(request: Request) -> None:
    """Draws what is asked for, and writes it whole or not at all."""
    people = _people(request)
    shown = _expressions(request, people)
    if request.interpolate:
        _write_way(request, people, shown)
        return
    alone = len(people.heads) == 1
    if not shown:
        drawn = editing.gallery(people.heads, people.first.habits.expression)
    elif alone and len(shown) == 1:
        drawn = editing.picture(people.first, shown[0].code)
    else:
        drawn = editing.sheet(list(people.heads.values()), shown)
    insets = len(shown) * len(people.heads) > 1 and any(item.face is not None for item in shown)
    save_image(request.out, drawn, Statement(source=COMPOSITE if insets else RENDERED))


def _people(request: Request) -> People:
    if request.prior is None:
        assert request.avatar is not None  # make_request has asked for one of the two
        return People(heads={"": Avatar.load(request.avatar)})
    model = load_heads(request.prior)
    sampled = request.sample or (_GRID[0] if request.grid and not request.identities else 0)
    codes = {name: model.codes[_known(model, name)] for name in request.identities}
    codes |= {f"sample {seed}": model.sample(seed) for seed in range(request.seed, request.seed + sampled)}
    codes = codes or {model.identities[0]: model.codes[0]}
    heads = {name: model.avatar(code) for name, code in codes.items()}
    return People(heads=heads, prior=model, codes=tuple(codes.values()))


def _known(model: Heads, name: str) -> int:
    if name not in model.identities:
        raise InputError(f"no identity '{name}': the head model knows {listed(model.identities)}")
    return model.identities.index(name)


def _expressions(request: Request, people: People) -> list[Expression]:
    head, shown = people.first, []
    for label, vector in request.scores:
        if head.scores is None:
            raise InputError(
                "--scores: this head has no map from expression scores (its head model learnt from footage without "
                "any): use --image, --face or --from_avatar"
            )
        shown.append(Expression(label=label, code=head.scores.code(vector)))
    with contextlib.closing(FaceReader()) as reader:
        faces = [(path, reader.read_file(path, head.spec.face_size).image) for path in request.photos]
    faces += [(path, images.read_rgb(path)) for path in request.faces]
    for path, face in faces:
        shown.append(Expression(label=path.stem, code=head.encode(face), face=face))
    for path in request.avatars:
        shown.append(Expression(label=path.resolve().name, code=_borrowed(head, path)))
    if request.grid and not shown:
        assert people.prior is not None  # make_request has refused --grid of an avatar
        for row in people.prior.different_expressions(_GRID[1], request.seed):
            shown.append(Expression(label=people.prior.frames[row], code=people.prior.expressions[row]))
    return shown


def _borrowed(head: Avatar, path: pathlib.Path) -> Float[np.ndarray, "z"]:
    """The habitual expression of another avatar, if both read faces alike."""
    other = Avatar.load(path)
    mine, theirs = (
        jax.tree.leaves(nnx.state(avatar.model.networks.expression_encoder)) for avatar in (head, other)
    )
    if len(mine) != len(theirs) or not all(map(np.array_equal, mine, theirs)):
        raise InputError(
            f"--from_avatar={path} was fitted with another head model: its codes mean other expressions"
        )
    return np.asarray(other.habits.expression)


def _write_way(request: Request, people: People, shown: Sequence[Expression]) -> None:
    film = request.out.suffix.lower() == ".mp4"
    frames = request.frames or (_FILM if film else _STRIP)
    weights = editing.there_and_back(frames) if film else editing.there(frames)
    pictures, ends = _way(people, shown, weights)
    moving = tqdm(pictures, "frames", frames, unit="frame")
    if film:
        write_video(request.out, iter(moving), fps=request.fps, statement=Statement())
    else:
        save_image(request.out, editing.strip(list(moving), *ends), Statement())


def _way(
    people: People, shown: Sequence[Expression], weights: Sequence[float]
) -> tuple[Iterator[UInt8[np.ndarray, "h w 3"]], tuple[str, str]]:
    """The pictures of a transition, and what its ends are called."""
    rest = Expression(label="at rest", code=people.first.habits.expression)
    if len(people.codes) == 2 and people.prior is not None and len(shown) <= 1:
        code = (rest, *shown)[-1].code
        ways = editing.identity_way(people.prior, (people.codes[0], people.codes[1]), code, weights)
        first, last = people.heads
        return ways, (first, last)
    if len(people.heads) == 1 and 1 <= len(shown) <= 2:
        start, end = (rest, *shown)[-2:]
        return editing.expression_way(people.first, (start.code, end.code), weights), (start.label, end.label)
    raise InputError(
        "--interpolate goes between two expressions of one head (one: from rest to it), or between two people of a "
        f"head model under at most one expression: here are {len(people.heads)} heads, {len(shown)} expressions"
    )


def make_request() -> Request:
    """The flags, checked; `InputError` for what is wrong."""
    options = flags.FLAGS
    if bool(options.avatar) == bool(options.prior):
        raise InputError("give either --avatar=DIR, a fitted head, or --prior=WORKDIR, a trained head model")
    if not options.out:
        raise InputError("--out is missing: name the picture or the film to write")
    out = expanded(options.out)
    kinds = (*_PICTURES, ".mp4") if options.interpolate else _PICTURES
    if out.suffix.lower() not in kinds:
        hint = "" if options.interpolate else " (a film, .mp4, needs --interpolate)"
        raise InputError(f"--out={out}: the name must end in {', '.join(kinds)}{hint}")
    for name in ("identity", "sample", "grid"):
        if options.avatar and options[name].value:
            raise InputError(f"--{name} belongs to --prior: an avatar is one person")
    if options.avatar and not (options.scores or options.image or options.face or options.from_avatar):
        raise InputError("nothing to edit: give --scores, --image, --face or --from_avatar")
    if options.grid and options.interpolate:
        raise InputError("--grid and --interpolate exclude one another")
    if options.sample < 0 or options.seed < 0:
        raise InputError("--sample and --seed must not be negative")
    if (options.frames and options.frames < 2) or not 0.1 <= options.fps <= 240:
        raise InputError("--frames must be 2 or more, and --fps lie between 0.1 and 240")
    check_writable(out)
    return Request(
        out=out,
        avatar=expanded(options.avatar) if options.avatar else None,
        prior=expanded(options.prior) if options.prior else None,
        scores=[_labelled(given) for given in options.scores],
        photos=_existing("image", options.image),
        faces=_existing("face", options.face),
        avatars=[expanded(given) for given in options.from_avatar],
        identities=options.identity,
        sample=options.sample,
        grid=options.grid,
        interpolate=options.interpolate,
        frames=options.frames,
        fps=options.fps,
        seed=options.seed,
    )


def _labelled(given: str) -> tuple[str, Float[np.ndarray, "52"]]:
    """A --scores as (label, vector)."""
    values = read_scores(given)
    label = ", ".join(f"{name} {value:g}" for name, value in values.items()) if len(values) <= 2 else ""
    return label or pathlib.Path(given).stem.split(",")[0], score_vector(values)


def _existing(flag: str, given: Sequence[str]) -> list[pathlib.Path]:
    paths = [expanded(name) for name in given]
    for path in paths:
        if not path.is_file():
            raise InputError(f"no picture at --{flag}={path}: check the name")
    return paths


def main(argv: Sequence[str]) -> None:
    """Draws what the flags ask for."""
    del argv
    if flags.FLAGS.scores == ["list"]:
        print("\n".join(NAMES))
        return
    request = make_request()
    runtime.start()
    edit(request)
    print(f"{request.out}: {size_in_bytes(request.out.stat().st_size)}")


def define_flags() -> None:
    """Only when run as a program: two tools may share a flag's name."""
    flags.DEFINE_string("avatar", None, "Folder of a fitted avatar, or of its fit.")
    flags.DEFINE_string("prior", None, "Workdir of a trained head model.")
    flags.DEFINE_string("out", None, f"The picture ({', '.join(_PICTURES)}), or the film (.mp4).")
    flags.DEFINE_multi_string(
        "scores",
        [],
        f"name=number,... or a JSON file; 'list' prints the names. They are: {', '.join(NAMES)}.",
    )
    flags.DEFINE_multi_string("image", [], "A photo whose face has the expression.")
    flags.DEFINE_multi_string("face", [], "A face with the expression, cut out as training's are.")
    flags.DEFINE_multi_string("from_avatar", [], "Folder of an avatar whose usual expression to take.")
    flags.DEFINE_multi_string("identity", [], "A person that the head model knows.")
    flags.DEFINE_integer("sample", 0, "So many people made up by the head model.")
    flags.DEFINE_integer("seed", 0, "Of the first of them; each next one has the next.")
    flags.DEFINE_boolean("grid", False, "Two sampled people under five expressions.")
    flags.DEFINE_boolean("interpolate", False, "A transition between two expressions, or two people.")
    flags.DEFINE_integer("frames", 0, f"Of a transition; 0: {_FILM} of a film, {_STRIP} of a strip.")
    flags.DEFINE_float("fps", 25.0, "Frames a second of a film.")


if __name__ == "__main__":
    define_flags()
    run_main(main)
