"""A fit against the clock, and that all avatars of a head model are one program."""

import dataclasses
import itertools
import types
from time import perf_counter, sleep
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dataset_fixture import write_dataset
from fit_fixture import finetune_fit, first_batch, make_toy, tiny
from prior_fixture import SETTINGS

from gphm_jax import fit_pace, loop
from gphm_jax.fit_pace import Clock, Pace
from gphm_jax.fit_run import Fit, find_identity, finetune, seconds_used, step_figures
from gphm_jax.fit_settings import FinetuneSettings, FitSettings, FitWeights
from gphm_jax.fitting import IdentityFit, finetune_step, identity_step
from gphm_jax.logs import RunLog
from gphm_jax.optim import Schedule
from gphm_jax.settings import LogSettings
from gphm_jax.state import TrainState


@pytest.fixture
def time(monkeypatch):
    """A clock that a test sets."""
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(fit_pace, "time", types.SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def run(time, pace, cost):
    """The steps that the loop takes whose steps cost `cost(done)` seconds."""
    observer = loop.Observer(
        stage="identity",
        log=mock.MagicMock(),
        settings=LogSettings(every=10),
        checkpoints=mock.MagicMock(),
        meta={},
        draw=mock.MagicMock(),
    )

    def step(state, batch, perceptual):
        time.seconds += cost(int(state.step))
        return dataclasses.replace(state, step=state.step + 1), {"loss": np.float32(0.0)}

    state = TrainState(step=np.array(0), params=None, fixed=None, optimizer=None)
    steps = pace.begin(0)
    if steps > 0:
        state = loop.run(
            lambda done: step, state, itertools.repeat(None), None,
            steps=steps, observer=observer, replan=lambda state, done: pace(done),
        )  # fmt: skip
    return int(state.step)


@pytest.mark.parametrize(
    "cost", [lambda done: 0.25, lambda done: 0.1 + 0.004 * done, lambda done: 1.0 if done < 30 else 0.2]
)
@pytest.mark.parametrize("steps", [1, 600])
def test_steps_fill_the_budget(time, cost, steps):
    clock = Clock(60.0)
    done = run(time, Pace(clock, steps=steps), cost)
    assert done > 100 and abs(clock.left()) < 0.5  # a step is not cut


def test_a_share_and_the_most_that_is_asked_for(time):
    clock = Clock(60.0)
    assert run(time, Pace(clock, steps=100, share=0.5, most=100), lambda done: 0.1) == 100
    clock = Clock(60.0)
    assert run(time, Pace(clock, steps=100, share=0.5, most=100), lambda done: 1.0) == 30


def test_a_budget_of_few_steps_is_kept(time):
    clock = Clock(5.0)
    assert run(time, Pace(clock, steps=100, share=0.4, most=100), lambda done: 1.0) == 2
    assert run(time, Pace(clock, steps=600), lambda done: 1.0) == 3


def test_an_interrupted_part_goes_on_beyond_its_guess(time):
    clock = Clock(50.0)
    assert Pace(clock, steps=100).begin(150) == 151
    assert Pace(clock, steps=100, most=100).begin(100) == 100


def test_without_a_budget_steps_are_those_asked_for(time):
    assert run(time, Pace(Clock(), steps=37), lambda done: 1e6) == 37


def test_no_time_is_no_step(time):
    assert run(time, Pace(Clock(0.0), steps=100), lambda done: 1.0) == 0
    clock = Clock(50.0, used=30.0)  # of an interrupted run
    time.seconds += 20.0
    assert Pace(clock, steps=100).begin(40) == 40


def sleepy(x):
    sleep(0.2)
    return x


def test_the_clock_stands_still_while_programs_are_compiled(time):
    with Clock(10.0) as clock:
        jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 4.0)
        time.seconds += 6.0
        assert clock.compiling == 4.0 and clock.elapsed() == 2.0 and clock.left() == 8.0
        start = perf_counter()
        jax.eval_shape(jax.jit(lambda x: jax.jit(sleepy)(x)), jax.ShapeDtypeStruct((), np.float32))
        assert 4.2 <= clock.compiling <= 4.0 + perf_counter() - start  # an inner function's tracing counts once
        heard = clock.compiling
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 4.0)
    assert clock.compiling == heard


@pytest.mark.parametrize(
    "schedule",
    [Schedule(), Schedule(warmup_steps=5, hold_fraction=0.5, final_fraction=0.1), Schedule(hold_fraction=0.0)],
)
@pytest.mark.parametrize("steps", [1, 40])
def test_schedules_are_those_of_the_textbook(schedule, steps):
    hold = max(round(schedule.hold_fraction * steps), schedule.warmup_steps)
    expected = optax.join_schedules(
        [
            optax.linear_schedule(1.0 / (schedule.warmup_steps + 1), 1.0, max(schedule.warmup_steps, 1)),
            optax.constant_schedule(1.0),
            optax.cosine_decay_schedule(1.0, max(steps - hold, 1), schedule.final_fraction),
        ],
        [schedule.warmup_steps, hold],
    )
    for step in range(steps):
        np.testing.assert_allclose(schedule.at(step, steps), expected(step), rtol=1e-5)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Footage, head model and codes of two people, of 5 frames and of 12."""
    return [
        make_toy(write_dataset(tmp_path_factory.mktemp(f"{frames}"), identities=1, frames=frames, views=("0",)))
        for frames in (5, 12)
    ]


def program(step, footage, length):
    lowered = jax.jit(step.advance).lower(step.state, first_batch(footage), None, steps=np.int32(length))
    return lowered.as_text()


def test_all_avatars_are_one_program(people):
    weights = FitWeights(perceptual=0.0, alpha=0.5, anchor=0.1)
    settings = FinetuneSettings(losses=weights, trust_pixels=0.5)
    options = dataclasses.replace(FitSettings().identity, losses=FitWeights(perceptual=0.0))
    tunings, inversions = set(), set()
    for index, (footage, prior, codes) in enumerate(people):
        fit = finetune_fit((footage, prior, codes), code=index, freedom=0.5 + index)
        fit.trust_what_is_seen(jnp.linspace(0.0, 1.0 + index, 300), settings.trust_pixels)
        step = finetune_step(fit, settings, networks=("refine",), cameras=True, backend="auto", seed=0)
        tunings.add(program(step, footage, 10 + index))
        step = identity_step(IdentityFit(prior, codes), options, backend="auto", seed=0)
        inversions.add(program(step, footage, 10 + index))
    assert len(tunings) == 1 and len(inversions) == 1


def test_an_interrupted_fit_goes_on_to_the_budgets_end(people, tmp_path, monkeypatch):
    ticks = itertools.count()  # a quarter of a second goes by whenever somebody looks at the clock
    monkeypatch.setattr(fit_pace, "time", types.SimpleNamespace(monotonic=lambda: next(ticks) / 4))
    footage, prior, codes = people[0]
    settings = tiny(identity=dataclasses.replace(tiny().identity, steps=100))

    def run(seconds, used, code):
        clock = Clock(seconds, used=used)
        with RunLog(tmp_path) as log:
            fit = Fit(
                settings=settings, prior=SETTINGS, out=tmp_path, footage=footage, log=log, perceptual=None,
                clock=clock,
            )  # fmt: skip
            identities = find_identity(fit, prior, codes)
            fits = finetune(fit, finetune_fit(people[0], code=code).avatar, codes)
        steps = [step_figures(fit, name)["steps"] for name in ("identity", "finetune")]
        assert abs(clock.left()) < 1.0
        return steps, identities[-1].module, fits[-1].module

    steps, identity, fitted = run(8.0, 0.0, code=0)
    guess = round(0.4 * settings.finetune.steps)
    assert 0 < steps[0] < 100 and steps[1] > guess
    (tmp_path / "checkpoints" / "finetune" / "99.orbax-checkpoint-tmp").mkdir()  # a kill while it was written
    assert 0.0 < seconds_used(tmp_path) < 100.0
    more, same, further = run(20.0, 8.0, code=1)
    assert more[0] == steps[0] and more[1] > steps[1] + 20
    np.testing.assert_array_equal(same.identity_code[...], identity.identity_code[...])
    # Whatever it is given to begin from now, it is the avatar that was being tuned.
    np.testing.assert_array_equal(further.avatar.features[...], fitted.avatar.features[...])
    assert np.any(further.avatar.features[...] != finetune_fit(people[0], code=1).avatar.features[...])
