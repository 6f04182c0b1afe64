"""One person's head model, baked from the identity networks: points, and the networks that move them."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gphm_jax.gaussians import (
    Fixed,
    GaussianModel,
    MotionRegions,
    Neutral,
    pose_splats,
    regional_displacement,
)
from gphm_jax.geometry import to_world
from gphm_jax.nets import MLP, HeadNetworks, NetworkConfig
from gphm_jax.render import render_splats
from gphm_jax.settings import Settings
from gphm_jax.types import NUM_CHANNELS, Camera, Pose, Render, Splats, pytree

_DYNAMICS_DEPTH = 2  # hidden layers of f_dyn: tiny, by the paper's word


@dataclasses.dataclass(frozen=True, kw_only=True)
class AvatarSpec:
    """The structure of an avatar: all that its arrays do not say themselves."""

    networks: NetworkConfig
    num_splats: int
    expression_end: int  # rows before it have lambda_exp > 0
    motion_start: int  # rows from it on have lambda_nf > 0
    image_size: int  # pixels a side that it was fitted at, and renders by default
    face_size: int
    nonface_size: int


def spec_of(prior: GaussianModel, settings: Settings) -> AvatarSpec:
    """The structure of an avatar baked from a head model that was trained with these settings."""
    return AvatarSpec(
        networks=settings.networks,
        num_splats=prior.positions.shape[0],
        **dataclasses.asdict(prior.regions),
        image_size=settings.data.image_size,
        face_size=settings.data.face_size,
        nonface_size=settings.data.nonface_size,
    )


@pytree
class AvatarPoints:
    """One person's Gaussians without expression, in canonical space."""

    positions: Float[Array, "n 3"]  # X_id
    colors: Float[Array, "n c"]
    log_scales: Float[Array, "n 3"]  # S
    quats: Float[Array, "n 4"]  # Q
    opacity_logits: Float[Array, "n"]  # A
    features: Float[Array, "n d"]  # H, never optimised
    weight: Float[Array, "n"]  # lambda_exp, as it was at X0


class AvatarModel(nnx.Module):
    """One person's points and the networks that move them (paper 3.5, fine-tuning).

    f_inj, f_id, f_col, f_att and z_id are gone: their results are variables here. f_dyn is new. Like every model, it
    leaves the choice of kernels for its point MLPs to `nets.use_fused_points`.
    """

    def __init__(self, points: AvatarPoints, networks: HeadNetworks, spec: AvatarSpec, *, rngs: nnx.Rngs):
        self.regions = MotionRegions(expression_end=spec.expression_end, motion_start=spec.motion_start)
        self.networks = nnx.clone(networks)
        del self.networks.injection, self.networks.identity, self.networks.color
        sizes = spec.networks
        self.dynamics = MLP(
            sizes.feature_dim,
            NUM_CHANNELS + 8,
            width=sizes.dynamics_width,
            depth=_DYNAMICS_DEPTH,
            code_dim=sizes.expression_dim,
            zero_last=True,
            rngs=rngs,
        )
        self.positions = nnx.Param(points.positions)
        self.colors = nnx.Param(points.colors)
        self.log_scales = nnx.Param(points.log_scales)
        self.quats = nnx.Param(points.quats)
        self.opacity_logits = nnx.Param(points.opacity_logits)
        self.features = Fixed(points.features)
        self.weight = Fixed(points.weight)

    def __call__(
        self, expression_code: Float[Array, "1 f z"], motion_code: Float[Array, "1 f z"], pose: Pose
    ) -> Splats:
        """The Gaussians [1 f] in world space: eq. 7 on the baked points, then f_dyn's offsets of
        (colour, S, Q, A), then the head pose [1 f]."""
        h = self.features[...][None]
        shift, _ = regional_displacement(
            self.networks, self.regions, h, self.weight[...], expression_code, motion_code
        )
        offsets = self.dynamics(h[:, None], expression_code)
        color, scale, turn, opacity = jnp.split(
            offsets, [NUM_CHANNELS, NUM_CHANNELS + 3, NUM_CHANNELS + 7], axis=-1
        )
        return pose_splats(
            to_world(self.positions[...][None, None] + shift, pose),
            quats=self.quats[...][None, None] + turn,
            log_scales=self.log_scales[...][None, None] + scale,
            opacity_logits=self.opacity_logits[...][None, None] + opacity[..., 0],
            color=self.colors[...][None, None] + color,
            pose=pose,
        )

    def render(
        self,
        splats: Splats,
        camera: Camera,
        *,
        height: int,
        width: int,
        refine: bool = True,
        backend: str = "auto",
    ) -> Render:
        """Splats [1 f] seen by cameras [1 f v], refined; else their colour alone, which is then the fine picture."""
        if not refine:
            splats = dataclasses.replace(splats, features=splats.features[..., :3])
        features, alpha = render_splats(splats, camera, height=height, width=width, backend=backend)
        fine = self.networks.refine(features) if refine else jnp.clip(features, 0.0, 1.0)
        return Render(features=features, alpha=alpha, fine=fine)


def bake(prior: GaussianModel, code: Float[Array, "z"], spec: AvatarSpec, *, seed: int) -> AvatarModel:
    """Evaluates a head model's identity networks for one z_id and keeps the results as an avatar's variables.

    X_id = X0 + f_id(H), Colour = f_col(H), (S, Q, A) = (S0, Q0, A0) + f_att(H); H stays as the point feature.
    The avatar's pictures are those of the head model with this code, since f_dyn starts at zero.
    """
    neutral = _neutral(prior, code[None])
    n = spec.num_splats
    points = AvatarPoints(
        positions=neutral.positions[0, :n],
        colors=neutral.color[0],
        log_scales=neutral.log_scales[0],
        quats=neutral.quats[0],
        opacity_logits=neutral.opacity_logits[0],
        features=neutral.features[0, :n],
        weight=prior.weight[...],
    )
    return AvatarModel(points, prior.networks, spec, rngs=nnx.Rngs(seed))


@nnx.jit
def _neutral(prior: GaussianModel, code: Float[Array, "1 z"]) -> Neutral:
    return prior.neutral(code)


def empty_model(spec: AvatarSpec) -> AvatarModel:
    """A model of the given structure whose values do not matter: to trace, and to fill from a file."""
    n, rngs = spec.num_splats, nnx.Rngs(0)
    points = AvatarPoints(
        positions=jnp.zeros((n, 3)),
        colors=jnp.zeros((n, NUM_CHANNELS)),
        log_scales=jnp.zeros((n, 3)),
        quats=jnp.zeros((n, 4)),
        opacity_logits=jnp.zeros((n,)),
        features=jnp.zeros((n, spec.networks.feature_dim)),
        weight=jnp.zeros((n,)),
    )
    networks = HeadNetworks(
        spec.networks, face_size=spec.face_size, nonface_size=spec.nonface_size, rngs=rngs
    )
    return AvatarModel(points, networks, spec, rngs=rngs)
