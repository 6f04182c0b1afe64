"""Head models and avatars measured on held-out pictures, their own and others'."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from dataset_fixture import YAWS, write_dataset, write_frame
from prior_fixture import SETTINGS, make_prior, save_prior, toy_spec

from gphm_jax.avatar_model import bake
from gphm_jax.data import images
from gphm_jax.errors import InputError
from gphm_jax.face_distance import pair_distances
from gphm_jax.files import plain, write_json
from gphm_jax.fit_footage import open_fit_footage
from gphm_jax.fit_results import evaluate_fit, make_avatar
from gphm_jax.fit_settings import EvaluationSettings, FitSettings
from gphm_jax.fitting import encode_frames
from gphm_jax.gaussians import GaussianModel
from gphm_jax.provenance import read_marks
from gphm_jax.stages import load_prior
from gphm_jax.tools.evaluate import Request, kept_pictures, measure

ROOT = pathlib.Path(__file__).parent.parent


def people(root: pathlib.Path, names: str, frames: int, metadata: dict) -> pathlib.Path:
    """A dataset of the people that the toy prior was trained on, and others; each looks like its letter."""
    root.mkdir()
    for name in names:
        for frame in range(frames):
            write_frame(root / name, "abcx".index(name), frame, tuple(YAWS), (32, 32), 1, True)
    write_json(root / "dataset.json", metadata)
    return root


def request(out: pathlib.Path, **given) -> Request:
    return Request(
        **{
            "avatar": None,
            "prior": None,
            "data": None,
            "out": out,
            "subject": "",
            "lpips": (),
            "identity": False,
        }
        | given
    )


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "prior"
    model = save_prior(path)
    return path, model


def test_a_head_model_on_its_own_people(prior, tmp_path):
    data = people(tmp_path / "data", "abc", 1, {"held_out_views": ["2"]})
    figures = measure(request(tmp_path / "out", prior=prior[0], data=data, lpips=("vgg",)))
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found == json.loads(json.dumps(plain(figures)))
    held_out = found["heldout_views"]
    assert held_out["count"] == 3 and np.isfinite(held_out["psnr"]) and held_out["lpips_vgg"] > 0
    assert held_out["nearest_view_psnr"] > 0 and held_out["mean_image_psnr"] > 0
    kept = list(kept_pictures(tmp_path / "out" / "heldout"))
    assert [name for name, _, _ in kept] == ["a", "b", "c"]
    # What the view's camera recorded (`dataset_fixture`).
    psnr = [-10 * np.log10(np.mean((t / 255.0 - r / 255.0)[:-2, 1:] ** 2)) for _, t, r in kept]
    assert np.mean(psnr) == pytest.approx(held_out["psnr"], abs=0.05)
    assert read_marks(tmp_path / "out" / "heldout" / "a_0000_2_render.png") is not None
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"{held_out['psnr']:.2f} dB" in page and "held-out cameras" in page


def test_other_data_finds_its_people_by_name(prior, tmp_path, caplog):
    workdir, model = prior
    whole = people(tmp_path / "whole", "abc", 1, {"held_out_views": ["2"]})
    other = people(tmp_path / "other", "xb", 1, {})
    measure(request(tmp_path / "one", prior=workdir, data=whole))
    caplog.set_level("WARNING")
    figures = measure(request(tmp_path / "two", prior=workdir, data=other))
    assert "left out, unknown to the head model: x" in caplog.text
    # Nothing is held out there: all three views count, and no baseline is taken of them.
    assert figures["heldout_views"]["count"] == 3 and "nearest_view_psnr" not in figures["heldout_views"]
    assert "dataset.json holds none out" in figures["data"]
    first, second = (
        images.read_rgb(tmp_path / out / "heldout" / "b_0000_2_render.png").astype(int)
        for out in ("one", "two")
    )
    # The same person in the same pose, but for the correction that the frame's pose has learnt.
    assert isinstance(model, GaussianModel) and not np.array_equal(model.subjects.pose_corrections[...], 0)
    assert np.abs(first - second).mean() < 25
    again, _, meta = load_prior(workdir)
    assert again.subjects.pose_corrections.shape[0] == meta["num_frames"]
    with pytest.raises(InputError, match=r"knows none of the people in .* \(x\), only a, b, c"):
        measure(request(tmp_path / "three", prior=workdir, data=people(tmp_path / "strange", "x", 1, {})))


@pytest.fixture(scope="module")
def fit(tmp_path_factory):
    """The folder of a fit that took no step, and its footage with one held-out frame."""
    root = tmp_path_factory.mktemp("fit")
    footage = write_dataset(root / "data", identities=1, frames=3, metadata={"held_out_frames": ["0002"]})
    model, _ = make_prior()
    settings, spec = FitSettings(evaluation=EvaluationSettings(lpips=())), toy_spec(model)
    opened = open_fit_footage(footage, settings, SETTINGS)
    codes = encode_frames(model.networks, opened.pixels, opened.driven)
    baked = bake(model, jnp.asarray(model.subjects.codes[...])[0], spec, seed=0)
    avatar = make_avatar(baked, spec, codes, opened, backend="auto")
    avatar.save(root / "out" / "avatar")
    write_json(
        root / "out" / "config.json",
        {"prior": "p", "input": str(footage), **dataclasses.asdict(settings)},
    )
    return root / "out", footage, evaluate_fit(avatar, codes, opened, settings, lambda items, text: items)


@pytest.mark.parametrize("folder", ["", "avatar"])
def test_an_avatar_on_its_own_held_out_frames(fit, folder, tmp_path):
    out, _, expected = fit
    figures = measure(request(tmp_path / "out", avatar=out / folder))
    assert figures["heldout_views"] == pytest.approx(expected["heldout"], rel=1e-4)
    assert figures["heldout_views"]["count"] == 1 and "best_training_frame_psnr" in figures["heldout_views"]
    assert len(figures["side_views"]) == 2 and "held-out frames" in figures["data"]
    assert [name for name, _, _ in kept_pictures(tmp_path / "out" / "heldout")] == ["000"]
    assert "Cameras aside" in (tmp_path / "out" / "report.html").read_text()


def test_an_avatar_on_another_recording(fit, tmp_path):
    other = write_dataset(tmp_path / "other", identities=2, frames=2, views=("0",))
    figures = measure(request(tmp_path / "out", avatar=fit[0], data=other, subject="001"))
    assert figures["heldout_views"]["count"] == 2 and figures["data"].endswith("every frame")
    assert "best_training_frame_psnr" not in figures["heldout_views"] and not figures["side_views"]
    assert {name for name, _, _ in kept_pictures(tmp_path / "out" / "heldout")} == {"001"}
    with pytest.raises(InputError, match="has 2 identities: choose one"):
        measure(request(tmp_path / "again", avatar=fit[0], data=other))


def test_pair_distances_are_distributions():
    def embed(truth, render):
        return None if truth[0, 0, 0] == 0 else (truth[0, 0] / 255.0, render[0, 0] / 255.0)

    def flat(*color):
        return np.full((4, 4, 3), color, np.uint8)

    pictures = [
        ("a", flat(255, 0, 0), flat(255, 0, 51)),
        ("a", flat(255, 0, 0), flat(255, 102, 0)),
        ("b", flat(255, 255, 0), flat(255, 255, 0)),
        ("b", flat(0, 0, 0), flat(9, 9, 9)),  # no face
    ]
    found = pair_distances(pictures, embed)
    assert found is not None and found["count"] == 3 and found["mean"] == pytest.approx(0.2)
    assert found["p50"] == pytest.approx(0.2) and found["between_people"]["mean"] == pytest.approx(1.0)
    alone = pair_distances(pictures[:1], embed)
    assert alone is not None and alone["between_people"] is None
    assert pair_distances(pictures[3:], embed) is None


def test_the_command_refuses_bad_flags(fit, tmp_path):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "kernels")]))
    for flags, says in (
        ([f"--out={tmp_path}"], "give one of --avatar=DIR"),
        ([f"--avatar={fit[0]}", f"--out={fit[0]}"], "holds a run or an avatar: give a folder of its own"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "gphm_jax.tools.evaluate", *flags],
            cwd=ROOT, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1
