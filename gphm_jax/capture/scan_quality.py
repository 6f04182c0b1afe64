"""What rendering made of a person's scans: figures, and a page that shows views with their landmarks and masks."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from gphm_jax import report
from gphm_jax.capture.scans import Similarity
from gphm_jax.data import images, layout

_SHOWN = 24  # pictures of the sheet
_COLUMNS = 6
_CELL = 256  # pixels
_MARK, _EDGE = (255, 70, 50), (60, 120, 255)
_POOR_REPROJECTION, _POOR_DISTANCE = 6.0, 0.04  # pixels at 512, head lengths


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ScanFrame:
    """One scan with what the face model says of it, in canonical space."""

    path: pathlib.Path
    place: Similarity  # the file's coordinates to canonical space
    identity: Float[np.ndarray, "ki"]
    expression: Float[np.ndarray, "ke"]
    scores: Float[np.ndarray, "52"]  # ARKit's
    landmarks: Float[np.ndarray, "68 3"]
    reprojection: float  # median over marks, pixels of a picture of 512
    off_surface: float  # median over landmarks, head lengths to the scan's nearest vertex
    looks: int  # that showed the face


def figures(
    out: pathlib.Path,
    frames: Mapping[str, ScanFrame],
    dropped: Mapping[str, str],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The numbers of quality.json, of the written identity folder `out`."""
    return {
        "scans": len(frames) + len(dropped),
        "kept_scans": len(frames),
        "reprojection_px_at_512": {name: frame.reprojection for name, frame in frames.items()},
        "landmarks_off_surface_head_lengths": {name: frame.off_surface for name, frame in frames.items()},
        "looks": {name: frame.looks for name, frame in frames.items()},
        "views": {name: _count_views(out, name) for name in frames},
        "head_length_in_file_units": {name: 1 / frame.place.scale for name, frame in frames.items()},
        "file_to_canonical": {name: frame.place.matrix for name, frame in frames.items()},
        "dropped": [{"frame": name, "reason": reason} for name, reason in dropped.items()],
        "seconds": dict(seconds),
    }


def write(
    out: pathlib.Path,
    name: str,
    source: str,
    frames: Mapping[str, ScanFrame],
    dropped: Mapping[str, str],
    seconds: Mapping[str, float],
) -> None:
    """Writes `quality.html` into the identity folder."""
    misses = [frame.reprojection for frame in frames.values()]
    distances = [frame.off_surface for frame in frames.values()]
    at_a_glance = report.Figures(
        items=[
            (f"{len(frames)} of {len(frames) + len(dropped)}", "scans kept"),
            (f"{np.median(misses):.2f} px", "median reprojection error at 512 pixels"),
            (f"{np.median(distances):.3f}", "head lengths from landmarks to the surface, median"),
            (report.duration(sum(seconds.values())), "this run"),
        ]
    )
    notes = []
    if np.median(misses) > _POOR_REPROJECTION or np.median(distances) > _POOR_DISTANCE:
        notes.append(report.Note(text="The face model follows the scans poorly: landmarks may be off."))
    sheet = report.Picture(
        image=_sheet(out),
        caption="Views spread evenly over the scans: landmarks where the face shows (red), the mask's edge (blue).",
    )
    kept = [
        (
            key,
            frame.reprojection,
            frame.off_surface,
            frame.looks,
            _count_views(out, key),
            1 / frame.place.scale,
        )
        for key, frame in frames.items()
    ]
    header = (
        "scan",
        "reprojection, pixels at 512",
        "landmarks off the surface",
        "looks",
        "views from outside",
        "head length in its unit",
    )
    lost: list[report.Table | report.Note] = [report.Note(text="None.")]
    if dropped:
        lost = [report.Table(header=("scan", "why"), rows=list(dropped.items()))]
    report.write_report(
        out / "quality.html",
        title=f"Scans: {name}",
        subtitle=source,
        sections=[
            report.Section(heading="At a glance", items=[at_a_glance, *notes, sheet]),
            report.Section(heading="Dropped scans", items=lost),
            report.Section(heading="Every scan", items=[report.Table(header=header, rows=kept)], folded=True),
        ],
    )


def _count_views(out: pathlib.Path, frame: str) -> int:
    return len(list((out / "images" / frame).glob("image_*")))


def _sheet(out: pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
    dataset = layout.open_dataset(out)
    places = [(frame, view) for frame in dataset.frames for view in range(len(frame.views))]
    rows = np.unique(np.linspace(0, len(places) - 1, min(_SHOWN, len(places))).round().astype(int))
    cells = [_cell(dataset, *places[row]) for row in rows]
    columns = min(_COLUMNS, len(cells))
    cells += [np.full((_CELL, _CELL, 3), 255, np.uint8)] * (-len(cells) % columns)
    return np.vstack([np.hstack(cells[row : row + columns]) for row in range(0, len(cells), columns)])


def _cell(dataset: layout.Dataset, frame: layout.Frame, view: int) -> UInt8[np.ndarray, "c c 3"]:
    image, mask = layout.load_view(dataset, frame, view, size=_CELL)
    picture = image.copy()
    edges, _ = cv2.findContours((mask > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, edges, -1, _EDGE, 1, cv2.LINE_AA)
    if frame.shows_face[view]:
        intrinsics = layout.view_intrinsics(frame, view, _CELL)
        for x, y in images.project(frame.landmarks, frame.world_to_camera[view], intrinsics):
            place = round(8 * (float(x) - 0.5)), round(8 * (float(y) - 0.5))
            cv2.circle(picture, place, 12, _MARK, -1, cv2.LINE_AA, shift=3)
    label = f"{frame.name} / {frame.views[view].name}"
    cv2.putText(picture, label, (6, _CELL - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (40, 40, 40), 1, cv2.LINE_AA)
    return picture
