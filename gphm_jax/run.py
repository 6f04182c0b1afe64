"""What the stages of one training run share."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from gphm_jax.footage import Footage
from gphm_jax.logs import RunLog
from gphm_jax.settings import Settings
from gphm_jax.workdir import Workdir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Settings, pictures, folder, log and devices of a run."""

    settings: Settings
    workdir: Workdir
    footage: Footage
    log: RunLog
    devices: jax.sharding.Mesh
    lpips: dict[str, Any]  # LPIPS weights by network: of the training loss and of the evaluation, if they ask for any
