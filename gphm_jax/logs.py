"""What a run writes while it works: numbers, TensorBoard events, sample pictures and a progress bar."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from tensorboardX import SummaryWriter
from tqdm import tqdm

from gphm_jax import files
from gphm_jax.provenance import COMPOSITE, Statement, save_image

TILE = 160  # pixels a side that the tiles of a grid have at least
GRID_WIDTH = 1600  # pixels that a grid has at most
_GAP, _INK = 6, (70, 70, 70)
_LEAST_TEXT = 8.0  # pixels, however long a label is


class RunLog:
    """The record of a run in its workdir, over all of its stages and across interruptions.

    metrics.jsonl        one object a logging step: {"stage", "step", names of scalars...}, in order
    tensorboard/<stage>  the same scalars, and the grids
    images/              <stage>_<step>.png

    In a run of several processes, process 0 alone writes and shows.
    """

    def __init__(self, workdir: str | os.PathLike[str]):
        self.workdir = pathlib.Path(workdir)
        self._writes = jax.process_index() == 0
        self.path = self.workdir / "metrics.jsonl"
        self._writers: dict[str, SummaryWriter] = {}

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Flushes and closes the event files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    @contextlib.contextmanager
    def progress(self, stage: str, *, start: int, total: int) -> Iterator[ProgressBar]:
        """Opens a stage at step `start` of `total`, with a bar that shows rate and time left.

        What an interrupted run logged past `start` will be done again: its lines, pictures and events are dropped.
        """
        if self._writes:
            self._rewind(stage, start)
        with ProgressBar(stage, start, total, shown=self._writes) as bar:
            yield bar

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Appends one object to metrics.jsonl and the same values to TensorBoard."""
        if not self._writes:
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        row = {"stage": stage, "step": step} | {name: float(value) for name, value in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(files.plain(row), allow_nan=False) + "\n")
        writer = self._writer(stage, step)
        for name, value in values.items():
            writer.add_scalar(name, float(value), step)

    def images(self, stage: str, step: int, columns: Mapping[str, np.ndarray]) -> pathlib.Path:
        """Writes a grid with one labelled column a name and one row a sample; see `image_grid`."""
        path = self.workdir / "images" / f"{stage}_{step:07d}.png"
        if not self._writes:
            return path
        grid = image_grid(columns)
        save_image(path, grid, Statement(source=COMPOSITE))
        self._writer(stage, step).add_image("samples", grid, step, dataformats="HWC")
        return path

    def _writer(self, stage: str, step: int) -> SummaryWriter:
        if stage not in self._writers:
            folder = self.workdir / "tensorboard" / stage
            # TensorBoard hides what an earlier, interrupted run wrote at `purge_step` and later.
            self._writers[stage] = SummaryWriter(str(folder), purge_step=step)
        return self._writers[stage]

    def _rewind(self, stage: str, start: int) -> None:
        rows = read_metrics(self.workdir)
        keep = len(rows)
        for index, row in enumerate(rows):
            if row.get("stage") == stage and row.get("step", 0) > start:
                keep = index  # and later stages with it: they were trained from what is done again
                break
        # Also without a cut: a line that a kill left half-written must not swallow the next one.
        if self.path.exists():
            files.write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows[:keep]))
        for path in (self.workdir / "images").glob(f"{stage}_*.png"):
            step = path.stem.removeprefix(f"{stage}_")
            if step.isdecimal() and int(step) > start:
                path.unlink()


class ProgressBar:
    """One stage's bar on standard error: a line that redraws on a terminal, a line every 30 s elsewhere."""

    def __init__(self, stage: str, start: int, total: int, *, shown: bool = True):
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            desc=stage,
            total=total,
            initial=start,
            unit="step",
            dynamic_ncols=terminal,
            mininterval=0.2 if terminal else 30.0,
            file=sys.stderr,
            disable=not shown,
            ascii=not terminal,
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def update(
        self, done: int, values: Mapping[str, float] | None = None, *, total: int | None = None
    ) -> None:
        """Moves to step `done`, of `total` now; of `values`, the total loss and the PSNR are shown where given."""
        if total is not None:
            self._bar.total = total
        shown = {name: f"{float(values[name]):.4g}" for name in ("loss", "psnr") if values and name in values}
        if shown:
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(done - self._bar.n)


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The objects of a workdir's metrics.jsonl, in order; a last line cut short by a kill is left out."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def image_grid(columns: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, "h w 3"]:
    """A contact sheet: one labelled column a name, one row a sample.

    Each value holds n pictures, [n h w 3] or [n h w], floats in [0, 1] or bytes. All tiles get the first column's
    size, enlarged by a whole number where smaller than 160 pixels, reduced where the sheet would pass 1600.
    """
    names = list(columns)
    rows = [[files.to_bytes(picture) for picture in np.asarray(columns[name])] for name in names]
    if not rows or not rows[0] or len({len(column) for column in rows}) != 1:
        counts = ", ".join(f"{name} {len(column)}" for name, column in zip(names, rows, strict=True))
        raise ValueError(f"a grid wants columns of one non-zero length, not: {counts or 'no column'}")
    height, width = rows[0][0].shape[:2]
    scale = max(1.0, math.ceil(TILE / min(height, width)))
    scale = min(scale, (GRID_WIDTH - _GAP * (len(names) + 1)) / (len(names) * width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    text = round(
        14 * max(1.0, len(names) * size[0] / 1000)
    )  # pixels: still legible where a page shrinks the sheet
    heading = 2 * text - 2
    sheet = Image.new(
        "RGB",
        (len(names) * (size[0] + _GAP) + _GAP, len(rows[0]) * (size[1] + _GAP) + heading + _GAP // 2),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(text)
    for column, (name, pictures) in enumerate(zip(names, rows, strict=True)):
        left = _GAP + column * (size[0] + _GAP)
        room = size[0] / max(font.getlength(name), 1.0)
        fitting = font if room >= 1.0 else ImageFont.load_default(max(_LEAST_TEXT, text * room))
        draw.text((left + size[0] / 2, heading / 2 + 1), name, fill=_INK, font=fitting, anchor="mm")
        for row, picture in enumerate(pictures):
            tile = Image.fromarray(picture).convert("RGB")
            if tile.size != size:
                # Enlarged pixels stay squares: what is shown is what was computed.
                larger = size[0] > tile.size[0]
                tile = tile.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.BOX)
            top = heading + row * (size[1] + _GAP)
            sheet.paste(tile, (left, top))
            draw.rectangle((left - 1, top - 1, left + size[0], top + size[1]), outline=(225, 225, 225))
    return np.asarray(sheet)
