"""Scans -> identity folders: heads found and turned upright, many views of each drawn and written.

Every scan is drawn in canonical space, so its head pose is the identity and the cameras of all scans are the same.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.spatial
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from gphm_jax import jobs
from gphm_jax.capture import scan_placing, scan_quality
from gphm_jax.capture.expressions import ExpressionImages, expression_images
from gphm_jax.capture.identity_folder import DONE, claim, describe, is_done, source_of
from gphm_jax.capture.landmarks import Landmarker, open_landmarker
from gphm_jax.capture.preprocess import read_face_model
from gphm_jax.capture.scan_placing import LOOK_SIZE, LOOKS, Marks
from gphm_jax.capture.scan_quality import ScanFrame
from gphm_jax.capture.scans import UNMOVED, Person, Similarity, people_in, read_scan
from gphm_jax.capture.settings import ScanSettings
from gphm_jax.data import frame_writer
from gphm_jax.data.synthetic import cameras, renderer
from gphm_jax.data.synthetic.renderer import Lit
from gphm_jax.errors import InputError
from gphm_jax.face_fit import FaceFit, Observations, fit_face
from gphm_jax.files import write_json
from gphm_jax.morphable import LandmarkPart, MorphableModel

_SEARCH_PIXELS = 300.0  # a unit ball's radius in the pictures in which heads are looked for
_SAME_UNIT = 1.3  # head lengths of one person's scans differ less; else one of them has another unit
_SURFACE_POINTS = 100_000  # of a scan, by which landmarks are judged
_COARSE = 96  # pixels of the pictures in which views from within are told
_OUTSIDE = 0.85  # of what a view shows must be the surface's outside
_STILL = np.zeros(3)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Placed:
    """One scan's head: `place` takes the file's coordinates to canonical space."""

    path: pathlib.Path
    place: Similarity
    marks: Marks
    points: Float[np.ndarray, "n 3"]  # some of the surface, placed


def render_all(path: pathlib.Path, out: pathlib.Path, settings: ScanSettings, *, workers: int = 0) -> None:
    """Renders every scan at `path` into the dataset `out`, each person in a process of its own.

    Finished people are skipped. Of several, what fails is listed at the end and in `out`/failed.json
    (`TrainingError`); of one, it is raised.
    """
    people = people_in(path)
    read_face_model(settings)  # builds it once, before many would

    def described() -> dict[str, Any]:
        made = [person.name for person in people if is_done(out / person.name)]
        return _described(settings, {"path": str(path)}, identities=made)

    claim(out, described())
    if len(people) == 1:
        if not is_done(out / people[0].name):
            _render(people[0], out, settings)
        write_json(out / "dataset.json", described())
        return
    outcome = jobs.run_jobs(
        functools.partial(_render, out=out, settings=settings),
        people,
        done=lambda person: is_done(out / person.name),
        name=lambda person: person.name,
        size=lambda person: len(person.scans),
        workers=workers,
        description=path.name,
        unit="scan",
    )
    write_json(out / "dataset.json", described())
    outcome.conclude(out / "failed.json")


def render_person(person: Person, out: pathlib.Path, settings: ScanSettings) -> None:
    """Writes a person's scans, a frame each, to the identity folder `out`; goes on where it stopped.

    A scan that cannot be used is dropped and named in quality.json; `InputError` where none can.
    """
    claim(out, _described(settings, source_of(person.source, person.folders)))
    begin = time.monotonic()
    model = read_face_model(settings)
    dropped: dict[str, str] = {}
    with open_landmarker(settings.landmarks, settings.landmark_model or None) as landmarker:
        placed = _place(person, model.landmark_part(landmarker.scheme), landmarker, dropped)
        if not placed:
            raise InputError(_why(person, dropped))
        fit = _fit(placed, model, landmarker.scheme)
    frames = {name: _canonical(scan, fit, row) for row, (name, scan) in enumerate(placed.items())}
    found = time.monotonic()
    shown = expression_images(settings.expressions, settings.expression_images, max(16, settings.size // 2))
    for row, name in enumerate(tqdm(frames, f"{person.name}: pictures", unit="scan")):
        if not frame_writer.is_written(out, name):
            _write(out, name, row, frames[name], settings, shown)
    seconds = {"heads": found - begin, "pictures": time.monotonic() - found}
    scan_quality.write(out, person.name, str(person.source), frames, dropped, seconds)
    write_json(out / DONE, scan_quality.figures(out, frames, dropped, seconds))


def views(settings: ScanSettings) -> list[cameras.View]:
    """The cameras of every scan."""
    return [
        cameras.place(yaw, pitch, settings.size) for yaw, pitch in cameras.training_angles(settings.views)
    ]


def _render(person: Person, out: pathlib.Path, settings: ScanSettings) -> None:
    render_person(person, out / person.name, settings)


def _described(settings: ScanSettings, source: Mapping[str, str], **facts: Any) -> dict[str, Any]:
    angles = cameras.training_angles(settings.views)
    return describe(
        "gphm_jax.tools.render_scans",
        settings,
        [source],
        background="white",
        cameras=[
            {"view": str(n), "yaw_degrees": round(yaw, 3), "pitch_degrees": round(pitch, 3)}
            for n, (yaw, pitch) in enumerate(angles)
        ],
        **facts,
    )


def _place(
    person: Person, part: LandmarkPart, landmarker: Landmarker, dropped: dict[str, str]
) -> dict[str, Placed]:
    """Every usable scan of a person near canonical space, in order; names the others in `dropped`."""
    roughly: dict[str, Similarity] = {}
    for frame, path in tqdm(person.scans, f"{person.name}: heads", unit="scan"):
        try:
            scan = read_scan(path)
            ball = scan.to_unit_ball()
            lit = scan.placed(ball, pixels=_SEARCH_PIXELS)
            roughly[frame] = scan_placing.find_head(lit, landmarker, part).after(ball)
        except InputError as error:
            dropped[frame] = str(error)
    paths = dict(person.scans)
    placed = {}
    for frame, place in _one_unit(roughly, np.asarray(part.mean, np.float64), dropped).items():
        scan = read_scan(paths[frame])
        lit = scan.placed(place, pixels=_density(LOOK_SIZE))
        marks = scan_placing.look(lit, landmarker, UNMOVED, LOOKS)
        if (marks.weights > 0).any():
            step = -(-len(scan.vertices) // _SURFACE_POINTS)
            placed[frame] = Placed(
                path=paths[frame], place=place, marks=marks, points=place(scan.vertices[::step])
            )
        else:
            dropped[frame] = "no face found where it was seen before"
    return placed


def _why(person: Person, dropped: Mapping[str, str]) -> str:
    """What is wrong, of one scan or of all."""
    first, reason = next(iter(dropped.items()))
    path = str(dict(person.scans)[first])
    said = reason if path in reason else f"{path}: {reason}"
    return (
        said
        if len(dropped) == 1
        else f"none of the {len(dropped)} scans of {person.source} is of use ({said})"
    )


def _one_unit(
    places: Mapping[str, Similarity], face: Float[np.ndarray, "k 3"], dropped: dict[str, str]
) -> dict[str, Similarity]:
    """The places with the same size of head: an open mouth is no longer head."""
    if not places:
        return {}
    middle, common = face.mean(0), float(np.median([place.scale for place in places.values()]))
    kept = {}
    for frame, place in places.items():
        ratio = common / place.scale
        if not 1 / _SAME_UNIT < ratio < _SAME_UNIT:
            dropped[frame] = (
                f"its head is {ratio:.2f} times as long as in the person's other scans: is its unit right?"
            )
            continue
        resized = Similarity(scale=ratio, rotation=np.eye(3), shift=(1 - ratio) * middle)
        kept[frame] = resized.after(place)
    return kept


def _fit(placed: Mapping[str, Placed], model: MorphableModel, scheme: str) -> FaceFit:
    """The face model fitted to all scans of a person at once."""
    looks = [cameras.place(yaw, pitch, LOOK_SIZE) for yaw, pitch in LOOKS]
    last = np.array([[0.0, 0.0, 0.0, 1.0]])
    marks = [scan.marks for scan in placed.values()]
    return fit_face(
        model,
        Observations(
            points=np.stack([mark.points for mark in marks]),
            weights=np.repeat(
                np.stack([mark.weights for mark in marks])[..., None], marks[0].points.shape[1], -1
            ),
            sizes=np.full((len(looks), 2), LOOK_SIZE, np.int64),
            scheme=scheme,
            intrinsics=np.stack([view.intrinsics for view in looks]),
            world_to_camera=np.stack([np.concatenate([view.world_to_camera, last]) for view in looks]),
            moving=False,
        ),
    )


def _canonical(scan: Placed, fit: FaceFit, row: int) -> ScanFrame:
    """A scan and what the face model says of it, in the fitted head's own axes and unit."""
    home = Similarity(
        scale=float(fit.scale),
        rotation=Rotation.from_rotvec(fit.rotation[row]).as_matrix(),
        shift=fit.translation[row].astype(np.float64),
    ).inverse()
    seen, scores = scan.marks.weights > 0, scan.marks.expression
    landmarks = home(fit.landmarks[row].astype(np.float64))
    near, _ = scipy.spatial.cKDTree(home(scan.points)).query(landmarks)
    return ScanFrame(
        path=scan.path,
        place=home.after(scan.place),
        identity=fit.identity,
        expression=fit.expression[row],
        # The embedded face model's coefficients are scores too; of another, settings ask for detected ones.
        scores=fit.expression[row][:52] if scores is None else scores,
        landmarks=landmarks,
        reprojection=float(np.median(fit.reprojection[row][seen])),
        off_surface=float(np.median(near)),
        looks=int(seen.sum()),
    )


def _from_outside(lit: Lit, every: Sequence[cameras.View]) -> Iterator[tuple[int, cameras.View]]:
    """The views, numbered, without those that look into an open scan: a face from within is no back of a head."""

    def fronts(yaw: float, pitch: float) -> float:
        view = cameras.place(yaw, pitch, _COARSE)
        return renderer.front_share(lit, view.world_to_camera, view.intrinsics, _COARSE)

    face = fronts(0.0, 0.0)
    for number, view in enumerate(every):
        share = fronts(view.yaw, view.pitch)
        outside = share if face > 0.5 else 1 - share  # a scan may be wound the other way round
        # Where the face itself is wound both ways, winding tells nothing.
        if outside > _OUTSIDE or abs(face - 0.5) < 0.3:
            yield number, view


def _density(size: int) -> float:
    """Samples a head length in a picture."""
    return renderer.SUPERSAMPLING * size / cameras.PICTURE_HEIGHT


def _write(
    out: pathlib.Path,
    frame: str,
    row: int,
    scan: ScanFrame,
    settings: ScanSettings,
    shown: ExpressionImages,
) -> None:
    lit = read_scan(scan.path).placed(scan.place, pixels=_density(settings.size))
    with frame_writer.new_frame(out, frame) as folder:
        for number, view in _from_outside(lit, views(settings)):
            image, mask = renderer.render(lit, view.world_to_camera, view.intrinsics, settings.size)
            frame_writer.write_view(folder, str(number), image, mask, view.world_to_camera, view.intrinsics)
            if frame_writer.shows_face(_STILL, scan.landmarks, view.centre):
                box = frame_writer.face_box(scan.landmarks, view.world_to_camera, view.intrinsics)
                frame_writer.write_face(folder, str(number), image, box)
        frame_writer.write_params(
            folder,
            rotation=_STILL,
            translation=_STILL,
            identity=scan.identity,
            expression=scan.expression,
            landmarks=scan.landmarks,
        )
        for n, image in enumerate(shown.of(frame, row, scan.scores)):
            frame_writer.write_jpeg(folder / "expressions" / f"{n}.jpg", image, frame_writer.CROP_QUALITY)
