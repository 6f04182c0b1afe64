"""A whole fit at toy size, from a head model on disk to a loaded avatar, and what bad input gives."""

import dataclasses
import importlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from dataset_fixture import write_dataset
from fit_fixture import finetune_fit, first_batch, make_toy, run_steps, tiny, toy_footage
from flax import nnx
from prior_fixture import SETTINGS, save_prior, toy_spec

from configs.fit import get_config
from gphm_jax import fit_pace, fitting
from gphm_jax.avatar import Avatar
from gphm_jax.avatar_model import bake
from gphm_jax.data.sampler import evaluation_batches
from gphm_jax.errors import InputError
from gphm_jax.fit_pace import Clock, Pace
from gphm_jax.fit_results import angles_aside, evaluate_fit, make_avatar
from gphm_jax.fit_run import Fit, run_step
from gphm_jax.fit_settings import FinetuneSettings, FitSettings, FitWeights
from gphm_jax.fitting import (
    IdentityFit,
    finetune_step,
    identity_step,
    visibility,
)
from gphm_jax.logs import RunLog, read_metrics
from gphm_jax.optim import Rates, Schedule
from gphm_jax.scores import ScoreRegressor
from gphm_jax.settings import from_mapping
from gphm_jax.stages import load_prior
from gphm_jax.step import StepContext

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def prior_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("prior")
    save_prior(path)
    ScoreRegressor(neutral=np.ones(8), directions=np.ones((52, 8)), provenance={}).save(path / "scores.npz")
    return path


@pytest.fixture(scope="module")
def footage_dir(tmp_path_factory):
    """One person, five frames, three cameras: the first is fitted, the last frame is held out."""
    return write_dataset(
        tmp_path_factory.mktemp("footage"), identities=1, frames=5, metadata={"held_out_frames": ["0004"]}
    )


@pytest.fixture(scope="module")
def program():
    """fit.py as a module. Its flags are taken back: train.py has some of the same names."""
    module = importlib.import_module("fit")
    for name in ("config", "prior", "input", "out"):
        delattr(flags.FLAGS, name)
    return module


def test_a_fit_from_end_to_end(program, prior_dir, footage_dir, tmp_path, monkeypatch):
    out = tmp_path / "out"
    program.fit_person(tiny(), prior_dir, footage_dir, out)
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["training_frames"] == 4 and figures["heldout"]["count"] == 1
    assert figures["identity"]["steps"] == 6 and figures["finetune"]["steps"] == 5  # of 12: four images are few
    assert figures["by_images"] == "three"
    times = [row["seconds"] for row in figures["progress"]]
    assert times == sorted(times) and times[0] > 0 and times[-1] <= figures["seconds"]
    assert figures["progress"][0]["psnr"] < figures["progress"][-1]["psnr"] < 60
    assert len(figures["side_views"]) == 2  # two cameras beside the fitted one
    assert 0 < figures["heldout"]["psnr_coarse"] < 60
    assert figures["heldout"]["psnr_coarse"] != figures["heldout"]["psnr"]
    assert Avatar.load(out).scores.code(np.ones(52)).tolist() == [53.0] * 8
    for name in ("avatar/arrays.npz", "avatar/config.json", "preview.mp4", "report.html", "config.json"):
        assert (out / name).stat().st_size > 0, name
    assert not [path for path in out.rglob("*") if path.name.startswith(".") or "tmp" in path.name]
    written = (out / "metrics.json").stat().st_mtime_ns
    said = []  # whatever level of logging other tests have left
    monkeypatch.setattr(program.logging, "info", lambda text, *_: said.append(str(text)))
    program.fit_person(tiny(), prior_dir, footage_dir, out)
    assert any("done already" in line for line in said)
    assert (out / "metrics.json").stat().st_mtime_ns == written


def test_no_time_at_all_is_still_an_avatar(program, prior_dir, footage_dir, tmp_path):
    out = tmp_path / "out"
    program.fit_person(tiny(), prior_dir, footage_dir, out, seconds=0.0)
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["identity"]["steps"] == figures["finetune"]["steps"] == 0
    mean = Avatar.load(out / "avatar").model.positions[...]
    prior = load_prior(prior_dir)[0]
    code = np.mean(prior.subjects.codes[...], axis=0)[None]
    np.testing.assert_allclose(mean, prior.neutral(jnp.asarray(code)).positions[0, :300], atol=1e-4)
    with pytest.raises(InputError, match="another --seconds"):
        program.fit_person(tiny(), prior_dir, footage_dir, out, seconds=5.0)


def test_steps_are_taken_until_the_time_is_over(program, prior_dir, footage_dir, tmp_path, monkeypatch):
    ticks = itertools.count()  # a quarter of a second goes by whenever somebody looks at the clock
    monkeypatch.setattr(fit_pace, "time", types.SimpleNamespace(monotonic=lambda: next(ticks) / 4))
    out = tmp_path / "out"
    program.fit_person(tiny(), prior_dir, footage_dir, out, seconds=20.0)
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["identity"]["steps"] == 6  # as many as are asked for
    assert figures["finetune"]["steps"] > 5  # the rest of the time is theirs
    assert 18.0 < figures["seconds"] < 22.0  # steps are not cut, and compiling does not count
    assert not list((out / "images").glob("*"))  # drawing would cost time


def test_bad_input_is_one_line(footage_dir, tmp_path):
    """As a user meets it: the program, its flags, one line and status 2."""
    environment = dict(
        os.environ,
        JAX_PLATFORMS="cpu",
        XLA_FLAGS="",
        HOME=str(tmp_path),
        PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
    )
    environment.pop("PJRT_NPROC", None)  # of the tests' eight devices
    done = subprocess.run(
        [sys.executable, "fit.py", "--config=configs/fit.py:tiny", "--prior=~/prior", f"--input={footage_dir}",
         f"--out={tmp_path / 'out'}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: no trained prior in {tmp_path / 'prior'}")
    assert not (tmp_path / "out").exists()


def test_a_crop_larger_than_the_head_models_pictures_is_named(program, prior_dir, footage_dir, tmp_path):
    finetune = dataclasses.replace(tiny().finetune, losses=FitWeights(perceptual=0.1, perceptual_crop=64))
    with pytest.raises(InputError, match="finetune.losses.perceptual_crop=64"):
        program.fit_person(tiny(finetune=finetune), prior_dir, footage_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_eyes_of_other_landmark_sets_are_named_before_any_work(program, prior_dir, footage_dir, tmp_path):
    finetune = dataclasses.replace(tiny().finetune, losses=FitWeights(perceptual=0.0, eye_gain=3.0))
    with pytest.raises(InputError, match=r"config.finetune.losses.eye_gain=3.0: .* are 5: set it to 1"):
        program.fit_person(tiny(finetune=finetune), prior_dir, footage_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_footage_is_divided_by_frame_and_camera(footage_dir):
    footage = toy_footage(footage_dir)
    assert [item.frame.name for item in footage.training] == ["0000", "0001", "0002", "0003"]
    assert [item.frame.name for item in footage.held_out] == ["0004"]
    assert {item.views for item in footage.training} == {(0,)}
    assert [item.views for item in footage.aside] == [(0, 1, 2)]
    other = toy_footage(footage_dir, view="2")
    assert [item.frame.views[item.views[0]].name for item in other.aside] == ["2"]
    angles = angles_aside(footage.aside[0])
    np.testing.assert_allclose(
        angles, np.degrees([0.7, np.pi]), atol=4.0
    )  # about the head, which is not the origin


def test_frames_are_kept_back_where_nothing_says_which(tmp_path):
    footage = toy_footage(
        write_dataset(tmp_path, identities=1, frames=12, views=("0",)), held_out_fraction=0.25
    )
    assert [item.frame.name for item in footage.held_out] == ["0009", "0010", "0011"]
    assert len(footage.training) == 9 and footage.aside == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"view": "7"}, "no camera '7'"),
        ({"view": "10"}, "no frame of 000 in"),  # the camera behind the head
        ({"subject": "someone"}, "no identity 'someone'"),
    ],
)
def test_wrong_choices_are_named(footage_dir, change, words):
    with pytest.raises(InputError, match=words):
        toy_footage(footage_dir, **change)


def test_a_person_is_to_be_chosen(tmp_path):
    people = write_dataset(tmp_path / "people", identities=2, frames=1, views=("0",))
    with pytest.raises(InputError, match="2 identities: choose one with --config.subject"):
        toy_footage(people)


def test_the_more_images_the_more_may_change():
    table = from_mapping(FitSettings, get_config("small").to_dict()).by_images
    counts = (1, 3, 10, 100, 1000)
    assert [table.row(count)[0] for count in counts] == ["one", "three", "ten", "many", "many"]
    assert table.row(table.ten.up_to)[0] == "ten" and table.row(table.ten.up_to + 1)[0] == "many"
    rows = [table.row(count)[1] for count in counts]
    for fewer, more in itertools.pairwise(rows):
        assert fewer.length <= more.length and fewer.freedom <= more.freedom and fewer.sway <= more.sway
        assert set(fewer.moves) <= set(more.moves)
    assert rows[0].freedom < rows[-1].freedom and "expression" not in rows[1].moves and "refine" in rows[-1].moves
    assert table.row(table.three.up_to)[0] == "three" and table.row(table.three.up_to + 1)[0] == "ten"
    endless = dataclasses.replace(table, ten=dataclasses.replace(table.ten, up_to=0))
    assert [endless.row(count)[0] for count in counts] == ["one", "three", "ten", "ten", "ten"]


def test_few_frames_are_those_of_the_most_different_views(tmp_path):
    footage = toy_footage(write_dataset(tmp_path, identities=1, frames=5, views=("0",)))
    turns = [item.frame.rotation[0] for item in footage.training]
    assert np.ptp(turns) == pytest.approx(0.2)  # nodding
    few = toy_footage(tmp_path, images=3).training
    assert [item.frame.name for item in few][-1] == "0004" and len(few) == 3
    assert np.ptp([item.frame.rotation[0] for item in few]) == pytest.approx(0.2)
    assert len(toy_footage(tmp_path, images=9).training) == 5


def test_pictures_without_a_mask_have_no_figure_inside_it(toy):
    footage, prior, codes = toy
    spec = toy_spec(prior)
    avatar = make_avatar(
        bake(prior, jnp.asarray(prior.subjects.codes[...][0]), spec, seed=0), spec, codes, footage, backend="auto"
    )
    first = footage.training[0].frame

    class Pixels:
        """The first frame's masks, or all, are empty."""

        def __init__(self, rows):
            self.rows = rows

        def view(self, frame, view):
            image, mask = footage.pixels.view(frame, view)
            return image, mask * np.uint8(frame.row not in self.rows)

    def figures(rows):
        masked = dataclasses.replace(footage, pixels=Pixels(rows))
        return evaluate_fit(avatar, codes, masked, tiny(), lambda items, text: items)

    whole, partly, never = figures(()), figures((first.row,)), figures(range(9))
    assert np.isfinite(whole["train"]["psnr_mask"]) and np.isfinite(partly["train"]["psnr_mask"])
    assert partly["train"]["psnr_mask"] != whole["train"]["psnr_mask"]
    assert never["train"]["psnr_mask"] is None and never["heldout"]["psnr_mask"] is None
    assert all(side["psnr_mask"] is None for side in never["side_views"].values()) and never["side_views"]
    assert never["train"]["psnr"] == whole["train"]["psnr"]


@pytest.mark.parametrize("preset", ["tiny", "small", "paper"])
def test_every_preset_is_a_whole_configuration(preset):
    settings = from_mapping(FitSettings, get_config(preset).to_dict())
    assert settings.preset == preset
    settings.check()
    config = get_config(preset)
    with pytest.raises(InputError, match="choose one of tiny, small, paper"):
        get_config("huge")
    with pytest.raises(AttributeError, match="stepz"):
        config.finetune.stepz = 3


@pytest.fixture(scope="module")
def toy(footage_dir):
    """(footage, prior, frame codes) in this process."""
    return make_toy(footage_dir)


def test_codes_are_those_of_each_frame(toy):
    footage, prior, codes = toy
    item = footage.held_out[0]
    ((_, batch),) = evaluation_batches(footage.pixels, [item], references=[item])
    expected = prior.networks.expression_encoder(jnp.asarray(batch.face_image))[0, 0]
    np.testing.assert_allclose(codes.expression[item.frame.row], expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(codes.expression, axis=0).max() > 1e-3  # frames differ


def test_identity_step_moves_the_code_alone_and_lowers_the_loss(toy):
    footage, prior, codes = toy
    settings = dataclasses.replace(
        FitSettings().identity, rates=Rates(codes=5e-2), losses=FitWeights(perceptual=0.0)
    )
    fit = IdentityFit(prior, codes)
    before = jax.tree.map(np.asarray, nnx.state(fit.prior))
    mean = np.mean(prior.subjects.codes[...], axis=0)
    np.testing.assert_allclose(fit.identity_code[...], mean, atol=1e-6)
    fitted, rows = run_steps(identity_step(fit, settings, backend="auto", seed=0), footage, 8)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert np.abs(np.asarray(fitted.identity_code[...]) - mean).max() > 0.05
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, nnx.state(fitted.prior)))


def test_finetuning_moves_what_it_may_within_its_limits(toy):
    footage = toy[0]
    fit = finetune_fit(toy, position=1e-3, color=0.02)
    settings = FinetuneSettings(
        losses=FitWeights(perceptual=0.0, alpha=0.5, anchor=0.1),
        rates=Rates(positions=1e-2, color=1e-2, pose_corrections=1e-2),
    )
    fit.trust_what_is_seen(jnp.ones(300).at[:50].set(0.0), 0.5)
    for networks in ({"expression", "refine"}, set()):
        step = finetune_step(
            fit, settings, networks=(*networks, "dynamics"), cameras=False, backend="auto", seed=0
        )
        fitted, rows = run_steps(step, footage, 4)
        assert rows[-1]["coarse"] < rows[0]["coarse"] and 0.0 == rows[0]["anchor"] < rows[-1]["anchor"]
        moved = np.abs(np.asarray(fitted.avatar.positions[...] - fit.start["positions"][...])).max(axis=1)
        assert moved[:50].max() == 0.0  # never seen
        assert 0.9e-3 < moved.max() <= 1e-3 + 1e-7
        changed = {
            "/".join(map(str, path))
            for (path, old), (_, new) in zip(
                nnx.to_flat_state(nnx.state(fit)), nnx.to_flat_state(nnx.state(fitted)), strict=True
            )
            if not np.array_equal(old.get_value(), new.get_value())
        }
        nets = {name.split("/")[2] for name in changed if name.startswith("avatar/networks")}
        assert nets == networks
        assert any(name.startswith("avatar/dynamics") for name in changed)
        assert not any(
            name.startswith(("start", "avatar/features", "avatar/weight", "pose", "log_focal"))
            for name in changed
        )


def test_visibility_is_the_blending_weight(toy):
    footage = toy[0]
    fit = finetune_fit(toy)
    items = footage.training[:1]
    filled = np.asarray(visibility(fit, footage.pixels, items, backend="auto"))
    alpha = np.asarray(
        nnx.jit(lambda fit, batch: fit.picture(batch, "auto").alpha)(fit, first_batch(footage))
    )
    # All weights of a pixel sum to its alpha.
    np.testing.assert_allclose(filled.sum(), alpha.sum(), rtol=1e-4)
    assert alpha.sum() > 100 and (filled == 0).sum() > 20  # the far side is hidden
    half = np.array([[0, 0, 32, 15]] * 3, np.float32)  # the upper rows were recorded
    cut = [dataclasses.replace(items[0], frame=dataclasses.replace(items[0].frame, recorded=half))]
    upper = np.asarray(visibility(fit, footage.pixels, cut, backend="auto"))
    size = alpha.shape[-1]
    np.testing.assert_allclose(upper.sum(), alpha[..., : 15 * size // 32, :].sum(), rtol=1e-4)
    assert 0 < upper.sum() < 0.9 * filled.sum()


def test_steady_motion_codes_are_the_encoders_own(toy):
    footage, prior, codes = toy
    networks = nnx.clone(prior.networks)
    steadied = fitting.steady(networks, codes, footage.training, 0.25)
    again = fitting.encode_frames(networks, footage.pixels, footage.driven)
    rows = [item.frame.row for item in footage.driven]
    np.testing.assert_allclose(again.motion[np.array(rows)], steadied.motion[np.array(rows)], atol=1e-5)
    trained = np.array([item.frame.row for item in footage.training])
    before, after = np.asarray(codes.motion[trained]), np.asarray(steadied.motion[trained])
    np.testing.assert_allclose(after.mean(0), before.mean(0), atol=1e-5)
    np.testing.assert_allclose(after.std(0), 0.25 * before.std(0), atol=1e-5)
    assert before.std(0).max() > 1e-3
    np.testing.assert_array_equal(again.expression, codes.expression)


def test_a_fit_does_not_look_at_what_no_camera_recorded(toy):
    fit, seen = finetune_fit(toy), jax.tree.map(jnp.asarray, first_batch(toy[0]))
    rows = np.arange(seen.mask.shape[-2])[:, None] >= 12
    box = jnp.broadcast_to(jnp.float32([0, 0, seen.mask.shape[-1], 12]), seen.recorded.shape)
    context = StepContext(weights=FitWeights(perceptual=0.0, alpha=1.0, silhouette=1.0))

    def terms(batch):
        return jax.device_get(fitting._picture_losses(fit, batch, None, jax.random.key(0), context))

    def spoilt(batch, where):
        where = np.broadcast_to(where, batch.mask.shape)
        image = jnp.where(where[..., None], 0.3, batch.image)
        return dataclasses.replace(batch, image=image, mask=jnp.where(where, 0.7, batch.mask))

    cut = dataclasses.replace(seen, recorded=box)
    whole, before, beyond, within = (terms(b) for b in (seen, cut, spoilt(cut, rows), spoilt(cut, ~rows)))
    assert {"fine", "coarse", "alpha", "silhouette", "psnr"} == before.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, beyond[name])
        assert np.abs(value - within[name]).max() > 1e-3 and np.abs(value - whole[name]).max() > 1e-4


def test_an_interrupted_step_goes_on_to_the_same_bits(toy, tmp_path):
    footage, prior, codes = toy
    settings = from_mapping(FitSettings, get_config("tiny").to_dict())
    plain = dataclasses.replace(settings.identity, schedule=Schedule(), losses=FitWeights(perceptual=0.0))

    def run(out, steps):
        step = identity_step(IdentityFit(prior, codes), plain, backend="auto", seed=0)
        with RunLog(out) as log, Clock() as clock:
            fit = Fit(
                settings=settings, prior=SETTINGS, out=out, footage=footage, log=log, perceptual=None, clock=clock
            )
            last = run_step(fit, step, Pace(clock, steps=steps), 2)[-1]
        return np.asarray(last.module.identity_code[...])

    whole = run(tmp_path / "whole", 4)
    half = run(tmp_path / "parts", 2)
    assert np.abs(whole - half).max() > 0
    np.testing.assert_array_equal(run(tmp_path / "parts", 4), whole)
    assert [row["step"] for row in read_metrics(tmp_path / "parts")] == [2, 4]
