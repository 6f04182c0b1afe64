"""An avatar against the head model it was baked from, on disk, and as a user drives it."""

import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from prior_fixture import make_prior, toy_spec

from gphm_jax import Avatar
from gphm_jax.avatar import Habits
from gphm_jax.avatar_model import bake
from gphm_jax.errors import InputError
from gphm_jax.nets import MLP
from gphm_jax.render import render_splats
from gphm_jax.stages import load_prior
from gphm_jax.types import Camera, Pose

ROOT = pathlib.Path(__file__).parent.parent
CAMERA = Camera(
    world_to_camera=jnp.asarray([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 3], [0, 0, 0, 1]]),
    intrinsics=jnp.asarray([[58.0, 0, 16], [0, 58, 16], [0, 0, 1]]),
)
POSE = Pose(
    rotation=jnp.asarray([0.1, 0.4, -0.2]), translation=jnp.asarray([0.05, 0.1, 0.0]), scale=jnp.asarray(1.2)
)


@pytest.fixture(scope="module")
def prior():
    return make_prior()[0]


@pytest.fixture(scope="module")
def avatar(prior):
    spec = toy_spec(prior)
    model = bake(prior, prior.subjects.codes[...][1], spec, seed=0)
    codes = np.random.default_rng(1).standard_normal((2, spec.networks.expression_dim)).astype(np.float32)
    return Avatar(
        model, spec, Habits(expression=jnp.asarray(codes[0]), motion=jnp.asarray(codes[1]), camera=CAMERA)
    )


def test_a_baked_avatar_draws_what_the_head_model_draws(prior, avatar):
    face = np.random.default_rng(2).random((16, 16, 3)).astype(np.float32)
    expression, motion = avatar.encode(face), avatar.encode_motion(face[::-1])
    image, alpha = avatar.render(expression, camera=CAMERA, pose=POSE, motion=motion)

    def one(x, rank):
        return jnp.reshape(x, (1, 1, *x.shape[x.ndim - rank :]))

    pose = Pose(
        rotation=one(POSE.rotation, 1), translation=one(POSE.translation, 1), scale=one(POSE.scale, 0)
    )
    camera = Camera(
        world_to_camera=CAMERA.world_to_camera[None, None, None],
        intrinsics=CAMERA.intrinsics[None, None, None],
    )

    @nnx.jit
    def draw(model, expression, motion):
        output = model.animate(model.neutral(model.subjects.codes[...][1:2]), expression, motion, pose)
        features, alpha = render_splats(output.splats, camera, height=32, width=32)
        return model.networks.refine(features), alpha

    expected, expected_alpha = draw(prior, one(expression, 1), one(motion, 1))
    np.testing.assert_allclose(alpha, expected_alpha[0, 0, 0], atol=2e-5)
    np.testing.assert_allclose(image, expected[0, 0, 0], atol=2e-5)
    assert float(alpha.max()) > 0.9 and float(alpha.min()) < 0.1 * float(
        alpha.max()
    )  # a ball, and what is beside it
    still, _ = avatar.render(expression, camera=CAMERA, pose=POSE)
    assert np.abs(still - image).max() > 1e-4  # the motion code matters


def test_codes_are_the_encoders_and_images_may_have_any_size(prior, avatar):
    small = (np.random.default_rng(3).random((2, 16, 16, 3)) * 255).astype(np.uint8)
    codes = avatar.encode(small)
    expected = prior.networks.expression_encoder(jnp.asarray(small / np.float32(255)))
    np.testing.assert_allclose(codes, expected, rtol=1e-4, atol=1e-5)
    large = small[0].repeat(3, axis=0).repeat(3, axis=1)
    np.testing.assert_allclose(avatar.encode(large), codes[0], rtol=1e-4, atol=1e-5)
    assert avatar.encode_motion(small).shape == codes.shape


def test_render_takes_leading_axes_and_other_sizes(avatar):
    codes = jnp.asarray(np.random.default_rng(4).standard_normal((2, 3, 8)), jnp.float32)
    images, alpha = avatar.render(codes)
    assert images.shape == (2, 3, 32, 32, 3) and alpha.shape == (2, 3, 32, 32)
    single, _ = avatar.render(codes[1, 2], camera=CAMERA)
    np.testing.assert_allclose(images[1, 2], single, atol=1e-5)
    assert np.abs(images[0, 0] - images[1, 2]).max() > 1e-4
    # A wider picture keeps the head's size and puts it in the middle.
    wide, wide_alpha = avatar.render(codes[1, 2], size=(32, 48))
    assert wide.shape == (32, 48, 3)
    np.testing.assert_allclose(wide_alpha[:, 8:40], alpha[1, 2], atol=1e-4)
    twice = np.asarray(avatar.render(codes[1, 2], size=(64, 64))[1]).reshape(32, 2, 32, 2).mean(axis=(1, 3))
    assert np.abs(twice - alpha[1, 2]).mean() < 0.02


def test_the_splats_and_both_pictures_are_of_one_head(avatar):
    codes = jnp.asarray(np.random.default_rng(5).standard_normal((2, 8)), jnp.float32)
    picture = avatar.draw(codes, pose=POSE)
    np.testing.assert_array_equal(avatar.render(codes, pose=POSE)[0], picture.fine)
    splats = avatar.splats(codes, pose=POSE)
    assert splats.means.shape == (2, 300, 3) and splats.features.shape == (2, 300, 32)
    cameras = Camera(
        world_to_camera=jnp.broadcast_to(CAMERA.world_to_camera, (1, 2, 1, 4, 4)),
        intrinsics=jnp.broadcast_to(CAMERA.intrinsics, (1, 2, 1, 3, 3)),
    )
    drawn, alpha = render_splats(jax.tree.map(lambda x: x[None], splats), cameras, height=32, width=32)
    np.testing.assert_allclose(picture.coarse, drawn[0, :, 0, ..., :3], atol=1e-5)
    np.testing.assert_allclose(picture.alpha, alpha[0, :, 0], atol=1e-5)
    assert np.abs(picture.coarse - picture.fine).max() > 1e-3
    looked = avatar.look(splats)
    np.testing.assert_allclose(looked.fine, picture.fine, atol=1e-5)
    np.testing.assert_allclose(looked.alpha, picture.alpha, atol=1e-5)
    alone = avatar.look(jax.tree.map(lambda x: x[1], splats), refine=False)
    np.testing.assert_allclose(alone.fine, jnp.clip(picture.coarse[1], 0.0, 1.0), atol=1e-5)


def test_without_refinement_the_picture_is_the_coarse_one(avatar):
    code = avatar.habits.expression
    picture, plain = avatar.draw(code, pose=POSE), avatar.draw(code, pose=POSE, refine=False)
    np.testing.assert_allclose(plain.coarse, picture.coarse, atol=1e-6)
    np.testing.assert_allclose(plain.alpha, picture.alpha, atol=1e-6)
    np.testing.assert_array_equal(plain.fine, np.clip(plain.coarse, 0.0, 1.0))
    np.testing.assert_array_equal(avatar.render(code, pose=POSE, refine=False)[0], plain.fine)
    assert np.abs(picture.fine - plain.fine).max() > 1e-3


def test_a_performance_compiles_once(avatar, caplog):
    codes = np.random.default_rng(6).standard_normal((4, 8)).astype(np.float32)
    cameras = [avatar.orbit_camera(0.1 * n, size=(24, 24)) for n in range(3)]
    pose = Pose(
        rotation=np.zeros(3, np.float32), translation=np.zeros(3, np.float32), scale=np.ones((), np.float32)
    )

    def act(code, camera, pose):
        return avatar.render(code, camera=camera, pose=pose, motion=codes[3], size=(24, 24))[0]

    first = act(codes[0], cameras[0], pose)
    with jax.log_compiles():
        second = act(jnp.asarray(codes[1]), cameras[1], dataclasses.replace(pose, rotation=codes[0, :3]))
    assert not [record for record in caplog.records if "draw_picture" in record.getMessage()]
    with jax.log_compiles():
        avatar.render(codes[0], size=(24, 32))
    assert [record for record in caplog.records if "draw_picture" in record.getMessage()]
    assert np.abs(first - second).max() > 1e-3


def test_the_orbit_goes_round_the_head(avatar):
    eye = np.array([0.0, 0.0, 3.0])
    for yaw, pitch, expected in (
        (0.0, 0.0, eye),
        (np.pi / 2, 0.0, [3.0, 0, 0]),
        (0.0, np.pi / 2, [0, 3.0, 0]),
    ):
        matrix = np.asarray(avatar.orbit_camera(yaw, pitch).world_to_camera)
        np.testing.assert_allclose(-matrix[:3, :3].T @ matrix[:3, 3], expected, atol=1e-6)
        np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-6)


def test_what_is_saved_is_what_is_loaded(avatar, tmp_path):
    avatar.save(tmp_path / "avatar")
    avatar.save(tmp_path / "avatar")  # over an older one
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["arrays.npz", "avatar", "config.json"]
    code = avatar.habits.expression
    image, alpha = avatar.render(code, pose=POSE)
    (tmp_path / "config.json").write_text('{"preset": "small"}')  # the fit's own
    for path in (tmp_path / "avatar", tmp_path):
        loaded = Avatar.load(path)
        np.testing.assert_array_equal(loaded.render(code, pose=POSE)[0], image)
        assert loaded.spec == avatar.spec
    state, again = nnx.state(avatar.model), nnx.state(loaded.model)
    assert len(nnx.to_flat_state(state)) == len(nnx.to_flat_state(again)) > 20


def test_damaged_folders_are_named(avatar, tmp_path):
    with pytest.raises(InputError, match="no avatar in"):
        Avatar.load(tmp_path)
    prior = tmp_path / "prior"
    (prior / "checkpoints" / "stage2").mkdir(parents=True)
    (prior / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds a head model, not an avatar"):
        Avatar.load(prior)
    folder = tmp_path / "avatar"
    avatar.save(folder)
    with pytest.raises(InputError, match="holds an avatar, not a head model"):
        load_prior(tmp_path)
    good = (folder / "arrays.npz").read_bytes()
    (folder / "arrays.npz").write_bytes(good[: len(good) // 2])
    with pytest.raises(InputError, match="cannot read .*arrays.npz"):
        Avatar.load(folder)
    arrays = dict(np.load(io.BytesIO(good)))
    np.savez(folder / "arrays.npz", **(arrays | {"positions": arrays["positions"][:-1]}))
    with pytest.raises(InputError, match="'positions' must be \\(300, 3\\)"):
        Avatar.load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"version": 99}))
    with pytest.raises(InputError, match="version 99"):
        Avatar.load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"spec": config["spec"] | {"num_splat": 3}}))
    with pytest.raises(InputError, match="did you mean .*num_splats"):
        Avatar.load(folder)


def test_baking_drops_what_only_the_head_model_needs(avatar):
    networks = avatar.model.networks
    assert not {"injection", "identity", "color"} & set(vars(networks))
    assert dataclasses.asdict(avatar.spec)["num_splats"] == avatar.model.positions.shape[0] == 300


def backends(model):
    return {module.point_backend for _, module in nnx.iter_modules(model) if isinstance(module, MLP)}


def test_an_avatar_runs_on_the_backend_it_is_given(prior, avatar, tmp_path):
    baked = bake(prior, prior.subjects.codes[...][1], avatar.spec, seed=0)
    assert backends(baked) == {"xla"}  # nobody has chosen yet
    assert backends(Avatar(baked, avatar.spec, avatar.habits).model) == {"auto"}
    assert backends(baked) == {"xla"}
    avatar.save(tmp_path)
    assert backends(Avatar.load(tmp_path).model) == {"auto"}
    assert backends(Avatar.load(tmp_path, backend="xla").model) == {"xla"}


def test_the_package_is_light_until_the_avatar_is_asked_for():
    program = "import sys, gphm_jax; assert 'jax' not in sys.modules; gphm_jax.nothing"
    environment = {
        name: value for name, value in os.environ.items() if name != "PJRT_NPROC"
    }  # of these tests
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert "AttributeError: module 'gphm_jax' has no attribute 'nothing'" in done.stderr
