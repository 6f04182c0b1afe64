"""An untrained head model of toy size: a ball of splats that a test can bake, fit and save."""

from __future__ import annotations

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
from dataset_fixture import LANDMARKS
from flax import nnx

from gphm_jax.avatar_model import AvatarSpec
from gphm_jax.gaussians import GaussianConfig, GaussianModel, points_from_surface
from gphm_jax.guide import ellipsoid_mesh
from gphm_jax.nets import NetworkConfig
from gphm_jax.optim import Rates, Schedule, adam
from gphm_jax.settings import DataSettings, Settings
from gphm_jax.stages import Subject, describe
from gphm_jax.state import Checkpoints, create_state

NETWORKS = NetworkConfig(
    width=16, depth=1, injection_depth=1, feature_dim=8, identity_dim=4, expression_dim=8,
    encoder_widths=(8, 8), refine_widths=(8, 8, 8), refine_patch=2, dynamics_width=8,
)  # fmt: skip
SETTINGS = Settings(
    preset="toy", data=DataSettings(image_size=32, face_size=16, nonface_size=16), networks=NETWORKS
)


def make_prior() -> tuple[GaussianModel, Subject]:
    """A ball of 300 splats with random networks, no layer of which is zero."""
    vertices, faces = ellipsoid_mesh(np.zeros(3), np.full(3, 0.5), subdivisions=3)
    rng = np.random.default_rng(0)
    points, regions = points_from_surface(
        vertices, faces, rng.standard_normal((len(vertices), NETWORKS.feature_dim)).astype(np.float32),
        landmarks=LANDMARKS, landmark_features=rng.standard_normal((5, 8)).astype(np.float32),
        config=GaussianConfig(num_splats=300, initial_opacity=0.9), region=(0.15, 0.25), seed=0,
    )  # fmt: skip
    subject = Subject(identities=("a", "b", "c"), num_frames=3, landmarks=LANDMARKS)
    shapes = nnx.eval_shape(
        lambda: GaussianModel(
            points,
            regions,
            NETWORKS,
            num_identities=3,
            num_frames=3,
            face_size=16,
            nonface_size=16,
            rngs=nnx.Rngs(0),
        )
    )
    graphdef, state = nnx.split(shapes)

    def value(path, variable):
        # Drawn here, not by the networks themselves: one compilation an array would take longer than the tests.
        if path[-1] in point_values:
            return variable.replace(point_values[path[-1]])
        fan_in = np.prod(variable.shape[:-1]) if path[-1] == "kernel" else 100.0
        noise = rng.standard_normal(variable.shape).astype(np.float32) / np.float32(np.sqrt(fan_in))
        return variable.replace(jnp.asarray(noise + np.float32(path[-1] == "scale")))

    point_values = {field.name: getattr(points, field.name) for field in dataclasses.fields(points)}
    return nnx.merge(graphdef, nnx.map_state(value, state)), subject


def toy_spec(prior: GaussianModel) -> AvatarSpec:
    """The structure of an avatar baked from the prior."""
    return AvatarSpec(
        networks=NETWORKS, num_splats=300, **dataclasses.asdict(prior.regions),
        image_size=32, face_size=16, nonface_size=16,
    )  # fmt: skip


def save_prior(workdir: pathlib.Path) -> GaussianModel:
    """Writes the prior as a finished training run would."""
    model, subject = make_prior()
    _, state = create_state(model, adam(Rates(), Schedule(), steps=1))
    checkpoints = Checkpoints(workdir / "checkpoints" / "stage2")
    checkpoints.save(state, describe(model, SETTINGS, subject))
    checkpoints.close()
    return model
