"""Stage 2: the Gaussian head model (eqs. 5 to 11), and the transfer from the guide."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from scipy.spatial import cKDTree

from gphm_jax.errors import TrainingError
from gphm_jax.geometry import axis_angle_to_quaternion, quaternion_multiply, to_world
from gphm_jax.guide import GuideModel, Subjects
from gphm_jax.nets import MLP, HeadNetworks, NetworkConfig, expression_weight
from gphm_jax.types import Batch, Pose, Splats, pytree


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianConfig:
    """The point set's size and its first opacity."""

    num_splats: int = 0  # 0: one per vertex of the mean mesh (the paper); else the mean surface is sampled
    face_density: float = 1.0  # samples per area where lambda_exp is 1, in units of where it is 0
    initial_opacity: float = 0.1  # 3DGS; Gaussian Head Avatar starts at 0.3


@dataclasses.dataclass(frozen=True)
class MotionRegions:
    """Static sizes of the two motion regions of points sorted by falling lambda_exp."""

    expression_end: int  # rows before it have lambda_exp > 0
    motion_start: int  # rows from it on have lambda_nf > 0


@pytree
class Points:
    """The optimisable point set, before any code is applied. Rows sorted by falling lambda_exp."""

    positions: Float[Array, "n 3"]  # X0
    features: Float[Array, "n d"]  # Gamma0
    log_scales: Float[Array, "n 3"]  # S0
    quats: Float[Array, "n 4"]  # Q0
    opacity_logits: Float[Array, "n"]  # A0
    weight: Float[Array, "n"]  # lambda_exp at X0
    landmarks: Float[Array, "k 3"]  # P0
    landmark_features: Float[Array, "k d"]  # Gamma_P


@pytree
class GaussianOutput:
    """What one pass of the Gaussian model yields for the renderer and the losses."""

    splats: Splats  # world space, [i f]
    landmarks: Float[Array, "i f k 3"]
    displacement: Float[Array, "i f"]  # mean squared f_exp and f_nf displacement


class Fixed(nnx.Variable):
    """State that is stored with the model but never optimised."""


class GaussianModel(nnx.Module):
    """Points with features, decoded to Gaussians by the networks that the guide trained."""

    def __init__(
        self,
        points: Points,
        regions: MotionRegions,
        networks: NetworkConfig,
        *,
        num_identities: int,
        num_frames: int,
        face_size: int,
        nonface_size: int,
        rngs: nnx.Rngs,
    ):
        self.regions = regions
        self.networks = HeadNetworks(networks, face_size=face_size, nonface_size=nonface_size, rngs=rngs)
        self.subjects = Subjects(num_identities, num_frames, networks.identity_dim, rngs=rngs)
        self.attributes = MLP(
            networks.feature_dim, 8, width=networks.width, depth=networks.depth, zero_last=True, rngs=rngs
        )
        self.positions = nnx.Param(points.positions)
        self.features = nnx.Param(points.features)
        self.log_scales = nnx.Param(points.log_scales)
        self.quats = nnx.Param(points.quats)
        self.opacity_logits = nnx.Param(points.opacity_logits)
        self.landmarks = nnx.Param(points.landmarks)
        self.landmark_features = nnx.Param(points.landmark_features)
        self.weight = Fixed(points.weight)

    def __call__(self, batch: Batch) -> GaussianOutput:
        """The Gaussians of a batch in world space (eqs. 5 to 11)."""
        neutral = self.neutral(self.subjects.identity_code(batch.identity))
        nets = self.networks
        return self.animate(
            neutral,
            nets.expression_encoder(batch.face_image),
            nets.motion_encoder(batch.nonface_image),
            self.subjects.pose(batch.pose, batch.frame),
        )

    def neutral(self, code: Float[Array, "i z"]) -> Neutral:
        """The expression-free Gaussians of identities: H, X_id, Colour and (S, Q, A) (eqs. 5, 6, 8, 11)."""
        n = self.positions.shape[0]
        points = jnp.concatenate([self.positions[...], self.landmarks[...]])
        features = jnp.concatenate([self.features[...], self.landmark_features[...]])
        nets = self.networks
        h = nets.inject(features, code)
        offsets = self.attributes(h[..., :n, :])
        return Neutral(
            features=h,
            positions=points[None] + nets.identity(h),
            color=nets.color(h[..., :n, :]),
            log_scales=self.log_scales[...][None] + offsets[..., 0:3],
            quats=self.quats[...][None] + offsets[..., 3:7],
            opacity_logits=self.opacity_logits[...][None] + offsets[..., 7],
        )

    def animate(
        self,
        neutral: Neutral,
        expression_code: Float[Array, "i f z"],
        motion_code: Float[Array, "i f z"],
        pose: Pose,
    ) -> GaussianOutput:
        """Adds expression and motion (eq. 7) to neutral Gaussians and takes them to world space."""
        n = self.positions.shape[0]
        shift, displacement = regional_displacement(
            self.networks, self.regions, neutral.features, self.weight[...], expression_code, motion_code
        )
        canonical = neutral.positions[:, None] + shift
        world = to_world(canonical, pose)
        return GaussianOutput(
            splats=pose_splats(
                world[..., :n, :],
                quats=neutral.quats[..., None, :, :],
                log_scales=neutral.log_scales[..., None, :, :],
                opacity_logits=neutral.opacity_logits[..., None, :],
                color=neutral.color[..., None, :, :],
                pose=pose,
            ),
            landmarks=world[..., n:, :],
            displacement=displacement,
        )


@pytree
class Neutral:
    """Expression-free Gaussians of identities in canonical space; m = n + k: landmarks follow the points."""

    features: Float[Array, "i m d"]  # H
    positions: Float[Array, "i m 3"]  # X_id
    color: Float[Array, "i n c"]
    log_scales: Float[Array, "i n 3"]
    quats: Float[Array, "i n 4"]
    opacity_logits: Float[Array, "i n"]


def regional_displacement(
    networks: HeadNetworks,
    regions: MotionRegions,
    features: Float[Array, "i m d"],
    weight: Float[Array, "n"],
    expression_code: Float[Array, "i f z"],
    motion_code: Float[Array, "i f z"],
) -> tuple[Float[Array, "i f m 3"], Float[Array, "i f"]]:
    """Displacement of eq. 7 and its mean square, each network evaluated only where its weight is positive.

    Points are sorted by falling lambda_exp, so that both regions are contiguous; the k landmarks after the n
    points (m = n + k) have lambda_exp = 1 by definition: their distance to the nearest landmark is zero.
    """
    n, k = weight.shape[0], features.shape[-2] - weight.shape[0]
    end, start = regions.expression_end, regions.motion_start
    h = features[:, None]
    near = networks.expression(jnp.concatenate([h[..., :end, :], h[..., n:, :]], axis=-2), expression_code)
    near = near * jnp.concatenate([weight[:end], jnp.ones(k, weight.dtype)])[None, None, :, None]
    far = networks.motion(h[..., start:n, :], motion_code) * (1.0 - weight[start:])[None, None, :, None]
    lead = [(0, 0), (0, 0)]
    shift = jnp.pad(near[..., :end, :], [*lead, (0, n - end), (0, 0)]) + jnp.pad(
        far, [*lead, (start, 0), (0, 0)]
    )
    displacement = (jnp.sum(near**2, axis=(-2, -1)) + jnp.sum(far**2, axis=(-2, -1))) / (n + k)
    return jnp.concatenate([shift, near[..., end:, :]], axis=-2), displacement


def pose_splats(
    means: Float[Array, "*#b n 3"],
    *,
    quats: Float[Array, "*#b n 4"],
    log_scales: Float[Array, "*#b n 3"],
    opacity_logits: Float[Array, "*#b n"],
    color: Float[Array, "*#b n c"],
    pose: Pose,
) -> Splats:
    """Activates attributes and turns canonical orientations by the head pose; `means` are in world space.

    Q = R . Q', scales grow with the pose's scale. The renderer normalises quaternions.
    """
    turn = axis_angle_to_quaternion(pose.rotation)[..., None, :]
    return Splats(
        means=means,
        quats=quaternion_multiply(turn, quats),
        scales=jnp.exp(log_scales) * pose.scale[..., None, None],
        opacities=jax.nn.sigmoid(opacity_logits),
        features=color,
    )


def points_from_surface(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "m 3"],
    features: Float[np.ndarray, "v d"],
    *,
    landmarks: Float[np.ndarray, "k 3"],
    landmark_features: Float[np.ndarray, "k d"],
    config: GaussianConfig,
    region: tuple[float, float],
    seed: int,
) -> tuple[Points, MotionRegions]:
    """Stage 2's point set on a mean surface: its vertices, or `config.num_splats` blue-noise samples of it.

    S0 is the log of the mean distance to the 3 nearest neighbours, Q0 = (1, 0, 0, 0), A0 the logit of
    `config.initial_opacity`; features are interpolated within the triangles.
    """

    def weights(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        return np.asarray(expression_weight(jnp.asarray(points), jnp.asarray(landmarks), *region))

    if config.num_splats:
        density = 1.0 + (config.face_density - 1.0) * weights(vertices)
        positions, features = sample_surface(
            vertices, faces, features, density=density, count=config.num_splats, seed=seed
        )
    else:
        positions = np.asarray(vertices)
    weight = weights(positions)
    order = np.argsort(-weight, kind="stable")
    positions, features, weight = positions[order], features[order], weight[order]
    distance = cKDTree(positions).query(positions, k=4)[0][:, 1:].mean(axis=-1)
    n = len(positions)
    points = Points(
        positions=jnp.asarray(positions, jnp.float32),
        features=jnp.asarray(features, jnp.float32),
        # 1e-5: coincident samples would otherwise have scale zero, whose log is -inf.
        log_scales=jnp.asarray(
            np.repeat(np.log(np.maximum(distance, 1e-5))[:, None], 3, axis=1), jnp.float32
        ),
        quats=jnp.tile(jnp.asarray([1.0, 0.0, 0.0, 0.0]), (n, 1)),
        opacity_logits=jnp.full(
            (n,), np.log(config.initial_opacity / (1.0 - config.initial_opacity)), jnp.float32
        ),
        weight=jnp.asarray(weight, jnp.float32),
        landmarks=jnp.asarray(landmarks, jnp.float32),
        landmark_features=jnp.asarray(landmark_features, jnp.float32),
    )
    regions = MotionRegions(expression_end=int(np.sum(weight > 0.0)), motion_start=int(np.sum(weight >= 1.0)))
    return points, regions


def sample_surface(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "m 3"],
    features: Float[np.ndarray, "v d"],
    *,
    density: Float[np.ndarray, "v"],
    count: int,
    seed: int,
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n d"]]:
    """`count` samples of a mesh, as many per area as the vertices' `density` says, with the features there.

    Five times as many are drawn and thinned to blue noise: the largest Poisson-disc radius that leaves `count`,
    which shrinks with the root of the density.
    """
    corners = vertices[faces]
    area = 0.5 * np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1
    )
    mass = area * density[faces].mean(axis=1)
    rng = np.random.default_rng(seed)
    dense = 5 * count
    # Stratified in the cumulative mass: already far more even than independent draws.
    position = (np.arange(dense) + rng.random(dense)) / dense * mass.sum()
    face = np.minimum(np.searchsorted(np.cumsum(mass), position), len(faces) - 1)
    u, v = rng.random((2, dense))
    flip = u + v > 1.0
    u, v = np.where(flip, 1.0 - u, u), np.where(flip, 1.0 - v, v)
    weights = np.stack([1.0 - u - v, u, v], axis=-1)
    candidates = np.einsum("sk,skd->sd", weights, corners[face])
    keep = poisson_disc(
        candidates,
        shrink=1.0 / np.sqrt(np.einsum("sk,sk->s", weights, density[faces[face]])),
        count=count,
        expected_radius=0.8 * np.sqrt(mass.sum() / count),
        rng=rng,
    )
    return candidates[keep], np.einsum("sk,skd->sd", weights[keep], features[faces[face[keep]]])


def poisson_disc(
    points: Float[np.ndarray, "s 3"],
    *,
    shrink: Float[np.ndarray, "s"],
    count: int,
    expected_radius: float,
    rng: np.random.Generator,
) -> Int[np.ndarray, "n"]:
    """Indices of `count` points no two of which are closer than the largest radius that leaves so many.

    Two points' radius is scaled by the mean of their `shrink`. Dart throwing in one random order; the radius is
    found by bisection, and what it leaves beyond `count` is dropped at random.
    """
    order = rng.permutation(len(points))
    tree = cKDTree(points)

    def throw(radius: float) -> np.ndarray:
        pairs = tree.query_pairs(radius * shrink.max(), output_type="ndarray")
        distance = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=-1)
        pairs = pairs[distance < radius * shrink[pairs].mean(axis=1)]
        rank = np.empty(len(points), np.int64)
        rank[order] = np.arange(len(points))
        # Luby's rounds: a point is kept when no undecided neighbour comes before it; its neighbours go.
        undecided, kept = np.ones(len(points), bool), np.zeros(len(points), bool)
        while undecided.any():
            live = pairs[undecided[pairs].all(axis=1)]
            beaten = np.where(rank[live[:, 0]] < rank[live[:, 1]], live[:, 1], live[:, 0])
            winners = undecided.copy()
            winners[beaten] = False
            kept |= winners
            undecided &= ~winners
            touched = live[winners[live].any(axis=1)]
            undecided[touched.ravel()] = False
        return np.flatnonzero(kept)

    low, high = 0.0, 2.0 * expected_radius
    best = np.empty(0, np.int64)
    for _ in range(7):
        middle = (low + high) / 2
        kept = throw(middle)
        if len(kept) >= count:
            low, best = middle, kept
        else:
            high = middle
    if len(best) == 0:  # even radius zero leaves all points: no disc fits, fall back to a random subset
        best = order
    best = best[np.argsort(rng.random(len(best)), kind="stable")]
    return np.sort(best[:count])


def transfer(
    guide: GuideModel,
    config: GaussianConfig,
    networks: NetworkConfig,
    *,
    face_size: int,
    nonface_size: int,
    seed: int,
    surface: tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "m 3"]] | None = None,
) -> GaussianModel:
    """The Gaussian model that starts from a trained guide (f_att is the one new network).

    `surface` replaces the guide's mean mesh by another (vertices, faces), with f_mean's features there:
    the ablation that starts from an ellipsoid. Raises `TrainingError` when the guide has no surface.
    """
    vertices, features, faces, counts, overflow = jax.device_get(nnx.jit(lambda m: m.mean_surface())(guide))
    if overflow:
        raise TrainingError("the guide's mean surface overflows: raise config.guide.max_vertices and max_faces")
    if counts[1] == 0:
        raise TrainingError("the guide's mean surface is empty: lower config.stage1.rates.networks and start again")
    vertices, features, faces = vertices[: counts[0]], features[: counts[0]], faces[: counts[1]]
    if surface is not None:
        vertices, faces = surface
        features = np.asarray(guide.field(jnp.asarray(vertices, jnp.float32))[1])
    landmarks = guide.landmarks[...]
    points, regions = points_from_surface(
        vertices,
        faces,
        features,
        landmarks=np.asarray(landmarks),
        landmark_features=np.asarray(guide.field(landmarks)[1]),
        config=config,
        region=(guide.config.region_near, guide.config.region_far),
        seed=seed,
    )
    model = GaussianModel(
        points,
        regions,
        networks,
        num_identities=guide.subjects.codes.shape[0],
        num_frames=guide.subjects.pose_corrections.shape[0],
        face_size=face_size,
        nonface_size=nonface_size,
        rngs=nnx.Rngs(seed),
    )
    nnx.update(model.networks, nnx.state(guide.networks))
    nnx.update(model.subjects, nnx.state(guide.subjects))
    return model
