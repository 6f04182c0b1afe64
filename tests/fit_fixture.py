"""Fits of toy size in this process: footage, head model and codes, an avatar to tune, and steps to tune it by."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from prior_fixture import SETTINGS, make_prior, toy_spec

from configs.fit import get_config
from gphm_jax.avatar_model import bake
from gphm_jax.data.sampler import evaluation_batches
from gphm_jax.fit_footage import open_fit_footage
from gphm_jax.fit_settings import FinetuneSettings, FitSettings
from gphm_jax.fitting import FinetuneFit, encode_frames
from gphm_jax.settings import from_mapping


def tiny(**changes):
    """The tiny preset with some settings changed."""
    config = get_config("tiny")
    config.finetune.losses.eye_gain = 1.0  # the fixture's heads have 5 landmarks
    return dataclasses.replace(from_mapping(FitSettings, config.to_dict()), **changes)


def toy_footage(path, **changes):
    """The footage of a dataset for the tiny preset with some settings changed."""
    return open_fit_footage(path, tiny(**changes), SETTINGS)


def make_toy(path):
    """(footage, prior, frame codes) of a dataset."""
    footage = toy_footage(path)
    prior = make_prior()[0]
    return footage, prior, encode_frames(prior.networks, footage.pixels, footage.driven)


def first_batch(footage):
    """The first training frame."""
    return next(evaluation_batches(footage.pixels, footage.training, references=footage.driven))[1]


def finetune_fit(toy, *, code=0, freedom=1.0, **limits):
    """The avatar of one of the head model's own people, to be tuned within limits."""
    _, prior, codes = toy
    avatar = bake(prior, jnp.asarray(prior.subjects.codes[...][code]), toy_spec(prior), seed=0)
    bounds = dataclasses.replace(FinetuneSettings().limits, **limits)
    return FinetuneFit(avatar, codes, bounds, freedom=freedom)


def run_steps(step, footage, count, batch: Any = None):
    """The fitted module after so many steps on one batch (the first frame), and the scalars of each."""
    batch = batch or first_batch(footage)
    advance = jax.jit(step.advance)
    state, rows = step.state, []
    for _ in range(count):
        state, scalars = advance(state, batch, None, steps=count)
        rows.append(scalars)
    return nnx.merge(step.graphdef, state.params, state.fixed, copy=True), rows
