"""Finds where on the base mesh MediaPipe's detector puts its 478 landmarks (a maintenance program).

    python -m gphm_jax.tools.calibrate_landmarks --out=gphm_jax/data/synthetic/mediapipe478.txt

Renders synthetic heads from many sides, detects, and searches for each landmark the surface point whose projections
agree best with the marks, robustly, over all people, expressions and views. What is left is explained by a drift of
the mark with the direction it is seen from: contours slide, and the far side of a turned face is guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags
from jaxtyping import Float, Int
from tqdm import tqdm

from gphm_jax.capture.landmarks import open_landmarker
from gphm_jax.data.synthetic import cameras, expression, identity, linear, motion, person, renderer
from gphm_jax.data.synthetic.landmarks import DRIFT_UNIT, view_terms
from gphm_jax.errors import InputError, run_main
from gphm_jax.files import write_text
from gphm_jax.paths import expanded

SEED = 1_900_000_002  # a seed of its own: people of any data set stay unseen
_SIZE = 320
_VIEWS = 4  # of each expression
_YAW, _PITCH = 45.0, 18.0  # degrees either way
_DISTANCES = (2.2, 3.0, 4.5, 7.0)  # head lengths: from a webcam to a portrait lens
_HEIGHTS = (1.5, 2.2)  # head lengths that a picture shows
_REACH = 0.02  # head lengths: marks much further away than this no longer pull
_DIVISIONS = 8  # of a triangle's sides in the last search
_NEAREST = 8  # vertices around which it looks
_RIDGE = 1.0  # of drifts, against head lengths squared over all pictures
_ROUNDS = 5  # of reweighting


@dataclasses.dataclass(frozen=True, eq=False)
class _Sights:
    """What renders show, in head lengths of the picture plane: vertices, their motion, marks, view directions."""

    vertices: Float[np.ndarray, "r n 2"]
    motion: Float[np.ndarray, "r 2 3"]  # of a picture point with a canonical one, at the head's distance
    marks: Float[np.ndarray, "r k 2"]
    view: Float[np.ndarray, "r 3"]  # towards the camera, canonical


def main(argv: Sequence[str]) -> None:
    """Renders, detects, searches, writes."""
    del argv
    if not flags.FLAGS.out:
        raise InputError("--out is missing: give the table to write")
    kept = linear.head_vertices()
    sights, faces = _observe(flags.FLAGS.people, kept), linear.triangles(kept)
    rows = []
    for k in tqdm(range(sights.marks.shape[1]), desc="search"):
        corners, weights = _search(sights.vertices, sights.marks[:, k], faces)
        left = sights.marks[:, k] - np.einsum("rcx,c->rx", sights.vertices[:, corners], weights)
        drift, spread = _drift(left, sights)
        numbers = [*(f"{kept[v]:5d}" for v in corners), *(f"{w:.3f}" for w in weights), f"{spread:.4f}"]
        rows.append(
            " ".join([*numbers, *(f"{x:d}" for x in np.rint(drift.ravel() / DRIFT_UNIT).astype(int))])
        )
    head = (
        f"# {len(sights.marks)} renders of {flags.FLAGS.people} synthetic heads, MediaPipe face_landmarker_v2: base "
        f"vertices 3, weights 3, median distance (head lengths), drift 3 x 6 (head lengths / {DRIFT_UNIT:g})"
    )
    write_text(expanded(flags.FLAGS.out), "\n".join([head, *rows]) + "\n")


def _observe(people: int, kept: Int[np.ndarray, "n"]) -> _Sights:
    sights = []
    with open_landmarker("mediapipe") as landmarker:
        for index in tqdm(range(people), desc="render"):
            for image, points, camera, focal in _renders(index, kept):
                for found in landmarker.detect(image)[:1]:
                    sights.append(_sight(points, camera, focal, found.points))
    return _Sights(*(np.stack(column).astype(np.float32) for column in zip(*sights, strict=True)))


def _sight(
    points: Float[np.ndarray, "n 3"],
    camera: Float[np.ndarray, "3 4"],
    focal: float,
    marks: Float[np.ndarray, "k 2"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One render's row of `_Sights`; `camera` takes canonical points to the camera."""
    distance = float(np.linalg.norm(camera[:, 3]))
    local = points @ camera[:, :3].T + camera[:, 3]
    head_length = focal / distance  # pixels
    seen = focal * local[:, :2] / local[:, 2:] / head_length
    return seen, camera[:2, :3], (marks - _SIZE / 2) / head_length, -camera[:, :3].T @ camera[:, 3] / distance


def _renders(
    index: int, kept: Int[np.ndarray, "n"]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """Pictures of a person, with the canonical vertices, the camera of canonical space and the focal length."""
    rng = np.random.default_rng([SEED, index])
    subject = person.build(identity.sample(seed=SEED, index=index), detail=0.5)
    for frame in (0, 1 + index % 5, 1 + (index + 2) % 5):
        scores = expression.sample(seed=SEED, identity=index, frame=frame)
        moved = motion.sample(subject.pivot, seed=SEED, identity=index, frame=frame, amount=0.5)
        parts = person.frame_parts(subject, scores, moved)
        lit = renderer.light(parts, renderer.thin(subject.lights, 4), shadow_size=192)
        points = subject.canonical(expression.displace(subject.neutral, scores))[kept]
        for _ in range(_VIEWS):
            yaw, pitch = rng.uniform(-_YAW, _YAW), rng.uniform(-_PITCH, _PITCH)
            distance = float(rng.choice(_DISTANCES))
            focal = _SIZE * distance / rng.uniform(*_HEIGHTS)
            eye = cameras.TARGET + distance * cameras.direction(yaw, pitch)
            camera = cameras.look_at(eye, cameras.TARGET)
            image, _ = renderer.render(lit, camera, cameras.intrinsics(_SIZE, focal), _SIZE)
            turned = camera[:, :3] @ motion.rotation_matrix(moved.rotation)
            place = camera[:, :3] @ moved.translation + camera[:, 3]
            yield image, points, np.concatenate([turned, place[:, None]], 1), focal


def _cost(offset: Float[np.ndarray, "r n 2"]) -> Float[np.ndarray, "n"]:
    squared = (offset**2).sum(-1)
    return (squared / (squared + _REACH**2)).mean(0)


def _search(
    seen: Float[np.ndarray, "r n 2"], mark: Float[np.ndarray, "r 2"], faces: Int[np.ndarray, "m 3"]
) -> tuple[Int[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """The surface point with the least cost: the best vertices first, then a grid over the triangles around them."""
    best = np.argsort(_cost(seen - mark[:, None]))[:_NEAREST]
    around = faces[np.isin(faces, best).any(1)]
    steps = np.arange(_DIVISIONS + 1) / _DIVISIONS
    grid = np.array([[a, b, 1.0 - a - b] for a in steps for b in steps if a + b < 1.0 + 1e-9], np.float32)
    points = np.einsum("gc,rmcd->rmgd", grid, seen[:, around]).reshape(len(mark), -1, 2)
    triangle, place = divmod(int(np.argmin(_cost(points - mark[:, None]))), len(grid))
    return around[triangle], grid[place]


def _drift(left: Float[np.ndarray, "r 2"], sights: _Sights) -> tuple[Float[np.ndarray, "3 6"], float]:
    """Canonical displacement by terms of the view direction (robust least squares), and the median of what is left."""
    terms = view_terms(sights.view)
    system = np.einsum("rax,rj->raxj", sights.motion, terms).reshape(2 * len(left), -1).astype(np.float64)
    weight = np.ones(len(left))
    for _ in range(_ROUNDS):
        weighted = system * np.repeat(weight, 2)[:, None]
        solution = np.linalg.solve(
            weighted.T @ system + _RIDGE * np.eye(system.shape[1]), weighted.T @ left.ravel()
        )
        squared = ((left.ravel() - system @ solution).reshape(-1, 2) ** 2).sum(1)
        weight = 1.0 / (1.0 + squared / _REACH**2) ** 2  # Geman-McClure
    return solution.reshape(3, -1), float(np.sqrt(np.median(squared)))


def define_flags() -> None:
    """Only when run as a program: two tools may share a flag's name."""
    flags.DEFINE_string("out", None, "Table to write.")
    flags.DEFINE_integer("people", 64, "Synthetic heads to render, 12 pictures each.", lower_bound=1)


if __name__ == "__main__":
    define_flags()
    run_main(main)
