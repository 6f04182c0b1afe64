"""Finds where on the base mesh MediaPipe's detector puts its 478 landmarks (a maintenance program).

    python -m gphm_jax.tools.calibrate_landmarks --out=gphm_jax/data/synthetic/mediapipe478.txt

Renders synthetic heads, detects, and searches for each landmark the surface point whose projections agree best with
the marks, robustly, over all people, expressions and views. The people are of a seed of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags
from jaxtyping import Float, Int
from tqdm import tqdm

from gphm_jax.capture.landmarks import open_landmarker
from gphm_jax.data.synthetic import base, cameras, expression, identity, linear, motion, person, renderer
from gphm_jax.errors import InputError, run_main
from gphm_jax.files import write_text
from gphm_jax.paths import expanded

SEED = 1_900_000_002
_SIZE = 384
_YAWS = ((0.0, -18.0, 30.0), (0.0, 18.0, -30.0), (-8.0, 24.0, -38.0), (8.0, -24.0, 38.0))
_PITCHES = (0.0, 8.0, -8.0)
_REACH = 0.02  # head lengths: marks much further away than this no longer pull
_DIVISIONS = 8  # of a triangle's sides in the last search
_NEAREST = 8  # vertices around which it looks


def main(argv: Sequence[str]) -> None:
    """Renders, detects, searches, writes."""
    del argv
    if not flags.FLAGS.out:
        raise InputError("--out is missing: give the table to write")
    kept = linear.head_vertices()
    seen, marks = _observe(flags.FLAGS.people, kept)
    faces = linear.triangles(kept)
    rows = [_search(seen, marks[:, k], faces) for k in tqdm(range(marks.shape[1]), desc="search")]
    lines = [
        " ".join([*(f"{kept[v]:5d}" for v in vertices), *(f"{w:.4f}" for w in weights), f"{spread:.4f}"])
        for vertices, weights, spread in rows
    ]
    head = (
        f"# base vertices 3, weights 3, median distance in head lengths; {len(marks)} renders of "
        f"{flags.FLAGS.people} synthetic heads, MediaPipe face_landmarker_v2"
    )
    write_text(expanded(flags.FLAGS.out), "\n".join([head, *lines]) + "\n")


def _observe(people: int, kept: Int[np.ndarray, "n"]) -> tuple[np.ndarray, np.ndarray]:
    """Where the mesh's vertices [r n 2] and the detector's marks [r k 2] lie in each render, in head lengths."""
    seen, marks = [], []
    with open_landmarker("mediapipe") as landmarker:
        for index in tqdm(range(people), desc="render"):
            for image, vertices in _renders(index, kept):
                for found in landmarker.detect(image)[:1]:
                    seen.append(vertices)
                    marks.append(found.points / _SIZE * cameras.PICTURE_HEIGHT)
    return np.stack(seen).astype(np.float32), np.stack(marks).astype(np.float32)


def _renders(index: int, kept: Int[np.ndarray, "n"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    mesh = base.load()
    subject = person.build(identity.sample(seed=SEED, index=index), detail=0.75)
    for frame in (0, 1 + index % 5, 1 + (index + 2) % 5):
        scores = expression.sample(seed=SEED, identity=index, frame=frame)
        moved = motion.sample(subject.pivot, seed=SEED, identity=index, frame=frame, amount=0.5)
        lit = renderer.light(
            person.frame_parts(subject, scores, moved), renderer.thin(subject.lights), shadow_size=256
        )
        points = subject.canonical(expression.displace(subject.neutral, scores))
        world = motion.pose_vertices(
            points, mesh.head_weight, moved, pivot=subject.pivot, chest=subject.chest
        )[kept]
        for yaw, pitch in zip(_YAWS[(index + frame) % len(_YAWS)], _PITCHES, strict=True):
            view = cameras.place(yaw, pitch, _SIZE)
            image, _ = renderer.render(lit, view.world_to_camera, view.intrinsics, _SIZE)
            local = world @ view.world_to_camera[:, :3].T + view.world_to_camera[:, 3]
            pixels = local[:, :2] / local[:, 2:] * view.intrinsics[0, 0] + view.intrinsics[:2, 2]
            yield image, pixels / _SIZE * cameras.PICTURE_HEIGHT


def _cost(distance: Float[np.ndarray, "r n"]) -> Float[np.ndarray, "n"]:
    squared = distance**2
    return (squared / (squared + _REACH**2)).mean(0)


def _search(
    seen: Float[np.ndarray, "r n 2"], mark: Float[np.ndarray, "r 2"], faces: Int[np.ndarray, "m 3"]
) -> tuple[Int[np.ndarray, "3"], Float[np.ndarray, "3"], float]:
    """The surface point with the least cost: the best vertices first, then a grid over the triangles around them."""
    best = np.argsort(_cost(np.linalg.norm(seen - mark[:, None], axis=-1)))[:_NEAREST]
    around = faces[np.isin(faces, best).any(1)]
    steps = np.arange(_DIVISIONS + 1) / _DIVISIONS
    grid = np.array([[a, b, 1.0 - a - b] for a in steps for b in steps if a + b < 1.0 + 1e-9], np.float32)
    points = np.einsum("gc,rmcd->rmgd", grid, seen[:, around])
    distance = np.linalg.norm(points - mark[:, None, None], axis=-1).reshape(len(mark), -1)
    choice = int(np.argmin(_cost(distance)))
    triangle, place = divmod(choice, len(grid))
    return around[triangle], grid[place], float(np.median(distance[:, choice]))


def define_flags() -> None:
    """Only when run as a program: two tools may share a flag's name."""
    flags.DEFINE_string("out", None, "Table to write.")
    flags.DEFINE_integer("people", 24, "Synthetic heads to render, 9 pictures each.", lower_bound=1)


if __name__ == "__main__":
    define_flags()
    run_main(main)
