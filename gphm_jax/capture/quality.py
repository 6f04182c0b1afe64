"""What preprocessing made of a recording: figures, and a page that shows each doubtful frame."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from jaxtyping import UInt8
from scipy.spatial.transform import Rotation

from gphm_jax import report
from gphm_jax.capture.recording import Recording
from gphm_jax.curves import Chart
from gphm_jax.data import images

if TYPE_CHECKING:
    from gphm_jax.capture.preprocess import Outcome

_SHOWN = 24  # pictures of the sheet
_COLUMNS = 6
_CELL = 256  # pixels
_LISTED = 200  # rows of a table
_OBSERVED, _FITTED, _EDGE = (40, 220, 90), (255, 70, 50), (60, 120, 255)


def figures(recording: Recording, outcome: Outcome) -> dict[str, Any]:
    """The numbers of quality.json. Distances are pixels of the written pictures' own crop, turned to 512."""
    misses = _misses(outcome)
    track = outcome.track
    fields = {view: _field_of_view(outcome, view) for view in _views(outcome)}
    return {
        "pictures": len(outcome.sightings),
        "kept_pictures": sum(len(frame.views) for frame in track.frames.values()),
        "frames": len({item.frame for item in outcome.sightings}),
        "kept_frames": len(track.frames),
        "fps": 1 / recording.interval if recording.moving else None,
        "reprojection_px_at_512": {
            "median": float(np.median(list(misses.values()))),
            "worst_frame": float(max(misses.values())),
        },
        "field_of_view_degrees": fields,
        "pictures_with_other_faces": sum(item.others > 0 for item in outcome.sightings),
        "dropped": [
            {"frame": frame, "view": view, "reason": reason}
            for (frame, view), reason in outcome.dropped.items()
        ],
        "seconds": dict(outcome.seconds),
    }


def write_quality(out: pathlib.Path, recording: Recording, outcome: Outcome, size: int) -> None:
    """Writes `quality.html` into the identity folder."""
    summary = figures(recording, outcome)
    head = report.Figures(
        items=[
            (f"{summary['kept_frames']} of {summary['frames']}", "frames kept"),
            (
                f"{summary['reprojection_px_at_512']['median']:.2f} px",
                "median reprojection error at 512 pixels",
            ),
            (f"{next(iter(summary['field_of_view_degrees'].values())):.0f}°", "field of view of the picture"),
            (report.duration(sum(outcome.seconds.values())), "this run"),
        ]
    )
    notes = [report.Note(text=text) for text in advice(summary)]
    sheet = report.Picture(
        image=_sheet(out, outcome, size),
        caption="Evenly spaced frames: landmarks as detected (green) and as the face model has them (red), the mask's "
        "edge (blue), what lies outside it faded.",
    )
    report.write_report(
        out / "quality.html",
        title=f"Footage: {recording.name}",
        subtitle=str(recording.source),
        sections=[
            report.Section(heading="At a glance", items=[head, *notes, sheet]),
            report.Section(heading="Over time", items=[report.Charts(charts=_charts(outcome))]),
            report.Section(heading="Dropped pictures", items=_dropped(summary["dropped"])),
            report.Section(heading="Every picture", items=[_table(outcome)], folded=True),
        ],
    )


def advice(summary: Mapping[str, Any]) -> list[str]:
    """What `figures` give reason to look at, a sentence or two each."""
    said = []
    if summary["pictures_with_other_faces"]:
        said.append(
            f"{summary['pictures_with_other_faces']} pictures show more than one face: the one nearest to where it was "
            "before was followed, starting with the largest. See that it is the right person."
        )
    if summary["kept_frames"] < 0.9 * summary["frames"]:
        said.append("More than a tenth of the frames was dropped: the reasons stand below.")
    if summary["reprojection_px_at_512"]["median"] > 4:
        said.append("The face model follows the face poorly: heads and landmarks may be off.")
    return said


def _views(outcome: Outcome) -> list[str]:
    return list(dict.fromkeys(view for frame in outcome.track.frames.values() for view in frame.views))


def _field_of_view(outcome: Outcome, view: str) -> float:
    """Of the longer side of the picture as read, degrees."""
    seen = next(frame.views[view] for frame in outcome.track.frames.values() if view in frame.views)
    return float(2 * np.degrees(np.arctan(max(seen.size) / (2 * seen.intrinsics[0, 0]))))


def _misses(outcome: Outcome) -> dict[tuple[str, str], float]:
    """Median distance of each kept picture's landmarks, in pixels of a 512-pixel crop."""
    return {
        (name, view): float(np.median(seen.misses)) * 512 / outcome.squares[name, view].side
        for name, frame in outcome.track.frames.items()
        for view, seen in frame.views.items()
        if seen.misses is not None
    }


def _charts(outcome: Outcome) -> list[Chart]:
    frames, misses = outcome.track.frames, _misses(outcome)
    steps = [float(row) for row in range(len(frames))]
    angles = np.degrees(Rotation.from_rotvec([frame.rotation for frame in frames.values()]).as_euler("YXZ"))
    moved = np.array([frame.translation for frame in frames.values()])
    worst = [
        max((miss for (name, _), miss in misses.items() if name == frame), default=None) for frame in frames
    ]

    def chart(title: str, unit: str, series: Mapping[str, Iterable[float | None]]) -> Chart:
        return Chart(
            title=title,
            x_label="kept frame",
            y_label=unit,
            curves={name: (steps, list(values)) for name, values in series.items()},
        )

    return [
        chart("reprojection error", "pixels at 512", {"median of the landmarks": worst}),
        chart("head turn", "degrees", {"yaw": angles[:, 0], "pitch": angles[:, 1], "roll": angles[:, 2]}),
        chart("head place", "head lengths", {"x": moved[:, 0], "y": moved[:, 1], "z": moved[:, 2]}),
    ]


def _dropped(rows: Sequence[Mapping[str, str]]) -> list[report.Table | report.Note]:
    if not rows:
        return [report.Note(text="None.")]
    shown = [(row["frame"], row["view"], row["reason"]) for row in rows[:_LISTED]]
    caption = "" if len(rows) <= _LISTED else f"The first {_LISTED} of {len(rows)}; all are in quality.json."
    return [report.Table(header=("frame", "view", "why"), rows=shown, caption=caption)]


def _table(outcome: Outcome) -> report.Table:
    misses = _misses(outcome)
    rows = [
        (item.frame, item.view, item.score, misses.get((item.frame, item.view)), item.others)
        for item in outcome.sightings[:_LISTED]
    ]
    more = len(outcome.sightings) - _LISTED
    return report.Table(
        header=("frame", "view", "detection score", "reprojection, pixels at 512", "other faces"),
        rows=rows,
        caption=f"The first {_LISTED}; {more} more." if more > 0 else "",
    )


def _sheet(out: pathlib.Path, outcome: Outcome, size: int) -> UInt8[np.ndarray, "h w 3"]:
    places = list(_misses(outcome))
    chosen = [
        places[row]
        for row in np.unique(np.linspace(0, len(places) - 1, min(_SHOWN, len(places))).round().astype(int))
    ]
    cells = [_cell(out, outcome, frame, view, size) for frame, view in chosen]
    blank = np.full((_CELL, _CELL, 3), 255, np.uint8)
    columns = min(_COLUMNS, len(cells))
    cells += [blank] * (-len(cells) % columns)
    return np.vstack([np.hstack(cells[row : row + columns]) for row in range(0, len(cells), columns)])


def _cell(out: pathlib.Path, outcome: Outcome, name: str, view: str, size: int) -> UInt8[np.ndarray, "c c 3"]:
    """A written picture with what was found in it."""
    folder = out / "images" / name
    image = images.read_rgb(folder / f"image_{view}.jpg")
    mask = images.read_gray(folder / f"mask_{view}.png")
    faded = np.rint(image * 0.35 + 255 * 0.65).astype(np.uint8)
    picture = np.where(mask[..., None] > 127, image, faded)
    picture = cv2.resize(picture, (_CELL, _CELL), interpolation=cv2.INTER_AREA)
    edge, _ = cv2.findContours(
        (cv2.resize(mask, (_CELL, _CELL)) > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    cv2.drawContours(picture, edge, -1, _EDGE, 1, cv2.LINE_AA)
    frame, square = outcome.track.frames[name], outcome.squares[name, view]
    seen = frame.views[view]
    world_to_camera = np.concatenate([seen.world_to_camera, [[0.0, 0.0, 0.0, 1.0]]])
    fitted = images.project(frame.landmarks, world_to_camera, square.intrinsics(seen.intrinsics, _CELL))
    if seen.points is not None:
        _dots(picture, square.points(seen.points, _CELL), _OBSERVED, 1)
    _dots(picture, fitted, _FITTED, 2)
    cv2.putText(picture, name, (6, _CELL - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (40, 40, 40), 1, cv2.LINE_AA)
    return picture


def _dots(
    picture: UInt8[np.ndarray, "h w 3"], points: np.ndarray, color: tuple[int, int, int], radius: int
) -> None:
    for x, y in np.rint((points - 0.5) * 8).astype(int):
        cv2.circle(picture, (int(x), int(y)), radius * 4, color, -1, cv2.LINE_AA, shift=3)
