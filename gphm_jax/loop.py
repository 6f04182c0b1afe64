"""The training loop: steps over batches, with logging, checkpoints, pictures and the checks that stop a run."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax

from gphm_jax.errors import TrainingError
from gphm_jax.logs import RunLog
from gphm_jax.settings import LogSettings
from gphm_jax.state import Checkpoints, TrainState
from gphm_jax.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observer:
    """Where a stage reports and saves."""

    stage: str
    log: RunLog
    settings: LogSettings
    checkpoints: Checkpoints
    meta: dict[str, Any]
    draw: Callable[[TrainState, int], None]
    rates: str = "networks"  # the rate group to lower when the stage diverges
    folder_flag: str = "--workdir"


Step = Callable[[TrainState, Batch, Any], tuple[TrainState, dict[str, jax.Array]]]


def run(
    step_of: Callable[[int], Step],
    state: TrainState,
    batches: Iterable[Batch],
    perceptual: Any,
    *,
    steps: int,
    observer: Observer,
    replan: Callable[[TrainState, int], int] | None = None,
) -> TrainState:
    """Trains from the state's step n to `steps` by `step_of(n)`; a checkpoint is written only of a finite state.

    Scalars are read back every `settings.every` steps and before each checkpoint, never in between. After each step
    `replan(state, n)`, where given, says how many it shall be after all; `batches` must suffice for them.
    Raises `TrainingError` on a non-finite loss or gradient, and on a surface that vanished or outgrew its capacity.
    """
    done = int(state.step)
    settings = observer.settings
    with observer.log.progress(observer.stage, start=done, total=steps) as bar:
        since = time.perf_counter()
        for batch in batches:
            state, scalars = step_of(done)(state, batch, perceptual)
            done += 1
            if replan is not None:
                steps = max(done, replan(state, done))
            saves = done % settings.checkpoint_every == 0
            if saves or done == steps or done % settings.every == 0:
                values = {name: float(value) for name, value in jax.device_get(scalars).items()}
                check(values, observer, done)
                bar.update(done, values, total=steps)
                observer.log.scalars(observer.stage, done, values | {"seconds": time.perf_counter() - since})
                since = time.perf_counter()
            if saves or done == steps:
                observer.checkpoints.save(state, observer.meta)
            if done == steps or done % settings.grid_every == 0:
                observer.draw(state, done)
                since = time.perf_counter()  # pictures are not training time
            if done == steps:
                break
    return state


def check(values: dict[str, float], observer: Observer, step: int) -> None:
    """Stops a run that has gone wrong, in one sentence that says what to do.

    A folder keeps the settings of its run, so that other settings ask for another folder.
    """
    stage, last = observer.stage, observer.checkpoints.latest()
    saved = "nothing is saved of it yet" if last is None else f"its last good checkpoint is of step {last}"
    resume = "" if last is None else "run the same command again to resume from it; if it stops again, "
    new = f"start in a new {observer.folder_flag} with"
    slower = f"a lower --config.{stage}.rates.{observer.rates}"
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise TrainingError(
            f"{stage}: '{bad[0]}' is not finite at step {step}; {saved}: {resume}{new} {slower}"
        )
    if values.get("surface_vertices") == 0.0:
        raise TrainingError(
            f"{stage}: the signed distance field has no zero crossing left at step {step} (the surface vanished); "
            f"{saved}: {resume}{new} {slower} or a higher --config.{stage}.losses.silhouette, and check the masks "
            "and head poses of the data"
        )
    if values.get("surface_overflow", 0.0) > 0.0:
        raise TrainingError(
            f"{stage}: the surface has more vertices or faces than its capacity at step {step}; {saved}: "
            f"{new} larger --config.guide.max_vertices and --config.guide.max_faces"
        )
