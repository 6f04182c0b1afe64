"""What the loop says when it must stop a run: only what can be done."""

import functools
import re
import types

import pytest

from gphm_jax import loop
from gphm_jax.errors import TrainingError
from gphm_jax.fit_run import _RATES
from gphm_jax.fit_settings import FitSettings
from gphm_jax.settings import LogSettings, Settings

FAULTS = {
    "not finite": {"loss": float("nan")},
    "no zero crossing": {"loss": 1.0, "surface_vertices": 0.0},
    "capacity": {"loss": 1.0, "surface_vertices": 5.0, "surface_overflow": 1.0},
}


def observer(stage, last, **changes):
    return loop.Observer(
        stage=stage,
        log=None,
        settings=LogSettings(),
        checkpoints=types.SimpleNamespace(latest=lambda: last),
        meta={},
        draw=None,
        **changes,
    )


def advice(values, watcher):
    with pytest.raises(TrainingError) as caught:
        loop.check(values, watcher, 30)
    return str(caught.value)


def named_keys(text):
    return re.findall(r"--config\.([a-z0-9_.]*[a-z0-9_])", text)


@pytest.mark.parametrize("last", [None, 20])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_advice_can_be_followed(fault, last):
    text = advice(FAULTS[fault], observer("stage1", last))
    assert "\n" not in text and fault in text and "at step 30" in text
    assert "new --workdir" in text  # the old one keeps its settings
    assert ("checkpoint is of step 20" in text) == (last == 20) and "step 0" not in text
    assert ("run the same command again" in text) == (last == 20 and fault != "capacity")
    keys = named_keys(text)
    assert keys
    for key in keys:
        functools.reduce(getattr, key.split("."), Settings())


@pytest.mark.parametrize("step", _RATES)
def test_a_fits_advice_names_its_own_settings(step):
    text = advice(FAULTS["not finite"], observer(step, None, rates=_RATES[step], folder_flag="--out"))
    assert "new --out" in text
    (key,) = named_keys(text)
    assert functools.reduce(getattr, key.split("."), FitSettings()) > 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_sound_step_passes_until_something_is_wrong(fault):
    sound = {"loss": 1.0, "surface_vertices": 5.0, "surface_overflow": 0.0}
    watcher = observer("stage1", None)
    assert loop.check(sound, watcher, 30) is None
    assert fault in advice(sound | FAULTS[fault], watcher)
