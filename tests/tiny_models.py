"""Small models and batches with no files behind them, for tests of models, steps and sharding."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gphm_jax.gaussians import GaussianConfig, GaussianModel, points_from_surface
from gphm_jax.guide import GuideConfig, GuideModel, ellipsoid_mesh, ellipsoid_sdf
from gphm_jax.guide_start import initialize_sdf
from gphm_jax.nets import NetworkConfig
from gphm_jax.types import Batch, Camera, Pose

NETWORKS = NetworkConfig(
    width=16, depth=2, injection_depth=2, feature_dim=6, identity_dim=5, expression_dim=4,
    encoder_widths=(8, 8), refine_widths=(4, 4, 4), refine_patch=2,
)  # fmt: skip
GUIDE = GuideConfig(
    resolution=(10, 10, 10),
    box_min=(-0.9, -0.9, -0.9),
    box_max=(0.9, 0.9, 0.9),
    max_vertices=1500,
    max_faces=3000,
)
CENTER, RADII = np.array([0.0, 0.0, 0.0]), np.array([0.5, 0.6, 0.5])
FACE = 16


def landmarks() -> np.ndarray:
    """Five points on the ellipsoid's front."""
    directions = np.array([[0, 0, 1], [0.4, 0.2, 1], [-0.4, 0.2, 1], [0.2, -0.4, 1], [-0.2, -0.4, 1.0]])
    return (directions / np.linalg.norm(directions / RADII, axis=1, keepdims=True)).astype(np.float32)


def guide_model(*, identities: int = 2, frames: int = 4, sdf_steps: int = 400) -> GuideModel:
    """A guide whose surface is an ellipsoid."""
    model = GuideModel(
        GUIDE, NETWORKS, num_identities=identities, num_frames=frames, landmarks=landmarks(),
        face_size=FACE, nonface_size=FACE, rngs=nnx.Rngs(0),
    )  # fmt: skip
    sdf = ellipsoid_sdf(model.grid(), jnp.asarray(CENTER, jnp.float32), jnp.asarray(RADII, jnp.float32))
    initialize_sdf(model, sdf, steps=sdf_steps, seed=0)
    return model


def gaussian_model(*, identities: int = 2, frames: int = 4, splats: int = 200) -> GaussianModel:
    """A Gaussian model on an ellipsoid, with random (not zero) last layers so that every network matters."""
    vertices, faces = ellipsoid_mesh(CENTER, RADII, subdivisions=3)
    rng = np.random.default_rng(0)
    points, regions = points_from_surface(
        vertices, faces, rng.normal(size=(len(vertices), NETWORKS.feature_dim)), landmarks=landmarks(),
        landmark_features=rng.normal(size=(5, NETWORKS.feature_dim)),
        config=GaussianConfig(num_splats=splats, initial_opacity=0.5), region=(0.15, 0.25), seed=0,
    )  # fmt: skip
    model = GaussianModel(
        points, regions, NETWORKS, num_identities=identities, num_frames=frames,
        face_size=FACE, nonface_size=FACE, rngs=nnx.Rngs(1),
    )  # fmt: skip
    nets = model.networks
    for seed, net in enumerate((nets.identity, nets.expression, nets.motion, model.attributes)):
        kernel = net.last.kernel
        kernel[...] = 0.05 * jax.random.normal(jax.random.key(seed), kernel.shape)
    return model


def batch(*, identities: int = 2, frames: int = 2, views: int = 1, size: int = 16) -> Batch:
    """Random pictures seen by cameras in front of the ellipsoid."""
    rng = np.random.default_rng(3)
    lead = (identities, frames, views)
    matrix = np.broadcast_to(np.diag([1.0, -1.0, -1.0, 1.0]), (*lead, 4, 4)).copy()
    matrix[..., 2, 3] = 4.0
    matrix[..., 0, 3] = rng.normal(0, 0.2, lead)
    focal = 2.0 * size
    intrinsics = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])

    def draw(*shape: int) -> np.ndarray:
        return rng.random(shape).astype(np.float32)

    return jax.tree.map(
        jnp.asarray,
        Batch(
            identity=np.arange(identities, dtype=np.int32),
            frame=np.arange(identities * frames, dtype=np.int32).reshape(identities, frames),
            camera=Camera(
                world_to_camera=matrix.astype(np.float32),
                intrinsics=np.broadcast_to(intrinsics, (*lead, 3, 3)).astype(np.float32),
            ),
            image=draw(*lead, size, size, 3),
            mask=(draw(*lead, size, size) > 0.5).astype(np.float32),
            recorded=np.broadcast_to(np.float32([0, 0, size, size]), (*lead, 4)).copy(),
            pose=Pose(
                rotation=0.2 * draw(identities, frames, 3),
                translation=0.1 * draw(identities, frames, 3),
                scale=np.ones((identities, frames), np.float32),
            ),
            landmarks=np.broadcast_to(landmarks(), (identities, frames, 5, 3)).copy(),
            face_image=draw(identities, frames, FACE, FACE, 3),
            nonface_image=draw(identities, frames, FACE, FACE, 3),
        ),
    )
