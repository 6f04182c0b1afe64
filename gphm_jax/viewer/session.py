"""What one visitor has set: the view, the mode, the expression, the person. Knows nothing of browsers."""

from __future__ import annotations

import dataclasses

from gphm_jax.viewer.dial import Dial
from gphm_jax.viewer.frames import View
from gphm_jax.viewer.painter import Mode
from gphm_jax.viewer.playback import Playback


@dataclasses.dataclass(kw_only=True, eq=False)
class Session:
    """The state behind one browser's controls. Any thread may read and set it."""

    expression: Dial
    person: Dial | None = None  # of a prior, whose heads are many
    playback: Playback | None = None  # of a driving clip
    view: View | None = None  # none before the browser has said where it looks from
    mode: Mode = "fine"
