"""A trained head model as something to draw: the people it knows, people it makes up, and expressions for them.

    heads = load_heads("runs/gaussian-small")
    image, alpha = heads.avatar(heads.sample(7)).render(heads.expressions[3])

Every head is an `Avatar`, baked as a fit bakes one; it has had no fine-tuning.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gphm_jax.avatar import Avatar, Habits
from gphm_jax.avatar_model import AvatarSpec, bake, spec_of
from gphm_jax.data.files import read_npz
from gphm_jax.data.layout import Selection
from gphm_jax.data.pixels import PixelSource
from gphm_jax.data.sampler import spread
from gphm_jax.errors import InputError
from gphm_jax.files import atomic_path
from gphm_jax.fitting import encode_frames
from gphm_jax.gaussians import GaussianModel
from gphm_jax.habits import habits_of
from gphm_jax.nets import HeadNetworks, bounded_code
from gphm_jax.paths import expanded
from gphm_jax.scores import ScoreRegressor, load_scores
from gphm_jax.stages import load_prior
from gphm_jax.types import Camera
from gphm_jax.workdir import refuse_avatar

FILE = "heads.npz"  # in a workdir
_MOST_FRAMES = 512  # whose codes are kept
_ARRAYS = ("frames", "expressions", "expression", "motion", "world_to_camera", "intrinsics")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Heads:
    """A head model with its identities and expressions. Identity codes lie in the unit ball."""

    identities: tuple[str, ...]
    codes: Float[np.ndarray, "i z"]  # z_id of the identities
    frames: tuple[str, ...]  # training frames, as identity/frame
    expressions: Float[np.ndarray, "f z"]  # z_exp of the frames
    habits: Habits
    scores: ScoreRegressor | None
    prior: GaussianModel
    spec: AvatarSpec
    backend: str = "auto"

    def sample(self, seed: int) -> Float[np.ndarray, "z"]:
        """A random identity code: of the Gaussian with the known codes' mean and covariance.

        The known are far fewer than a code's dimensions, so that it lies in the flat through them.
        """
        mean = self.codes.mean(axis=0)
        weights = np.random.default_rng(seed).standard_normal(len(self.codes)).astype(np.float32)
        offset = weights @ (self.codes - mean) / np.sqrt(max(1, len(self.codes) - 1))
        return np.asarray(bounded_code(jnp.asarray(mean + offset)))

    def different_expressions(self, count: int, seed: int) -> list[int]:
        """Rows of `expressions`: a random one, and those that differ most from it and from one another."""
        rows = [int(np.random.default_rng(seed).integers(len(self.expressions)))]
        while len(rows) < min(count, len(self.expressions)):
            apart = np.linalg.norm(self.expressions[:, None] - self.expressions[rows], axis=-1).min(axis=1)
            rows.append(int(np.argmax(apart)))
        return rows

    def avatar(self, identity_code: Float[Array | np.ndarray, "z"]) -> Avatar:
        """The head of an identity code, which is taken to the unit ball."""
        code = bounded_code(jnp.asarray(identity_code, jnp.float32))
        model = bake(self.prior, code, self.spec, seed=0)
        return Avatar(model, self.spec, self.habits, scores=self.scores, backend=self.backend)


def load_heads(workdir: str | os.PathLike[str], *, backend: str = "auto") -> Heads:
    """The head model of a finished training run; `InputError` for a folder that is none."""
    workdir = expanded(workdir)
    path = workdir / FILE
    if not path.is_file():
        refuse_avatar(workdir)
        if (workdir / "metrics.json").is_file():
            raise InputError(
                f"{workdir} has no {FILE}, which training by configs/gaussian.py leaves: if it was that, remove "
                "metrics.json there and run the same train.py again"
            )
        if (workdir / "checkpoints").is_dir():
            raise InputError(f"training in {workdir} has not come to its end: run the same train.py again")
        raise InputError(
            f"no trained prior in {workdir}: run `python train.py --config=configs/gaussian.py` first"
        )
    arrays = read_npz(path, _ARRAYS)
    prior, settings, meta = load_prior(workdir)
    return Heads(
        identities=tuple(meta["identities"]),
        codes=np.asarray(bounded_code(prior.subjects.codes[...])),
        frames=tuple(str(name) for name in arrays["frames"]),
        expressions=arrays["expressions"],
        habits=Habits(
            expression=jnp.asarray(arrays["expression"]),
            motion=jnp.asarray(arrays["motion"]),
            camera=Camera(
                world_to_camera=jnp.asarray(arrays["world_to_camera"]),
                intrinsics=jnp.asarray(arrays["intrinsics"]),
            ),
        ),
        scores=load_scores(workdir),
        prior=prior,
        spec=spec_of(prior, settings),
        backend=backend,
    )


def save_frames(
    path: pathlib.Path,
    networks: HeadNetworks,
    pixels: PixelSource,
    training: Sequence[Selection],
    scores: ScoreRegressor | None,
) -> None:
    """Keeps what `load_heads` needs of the training frames, at most 512 of them: codes, and a frontal camera.

    The heads' habitual expression is the neutral one where the scores tell which that is.
    """
    items = spread(training, _MOST_FRAMES)
    codes = encode_frames(networks, pixels, items)
    habits = habits_of(codes, items, pixels.image_size)
    with atomic_path(path) as partial:
        np.savez(
            partial,
            frames=np.array([f"{item.frame.identity}/{item.frame.name}" for item in items]),
            expressions=np.asarray(codes.expression)[[item.frame.row for item in items]],
            expression=np.asarray(habits.expression if scores is None else scores.neutral),
            motion=np.asarray(habits.motion),
            world_to_camera=np.asarray(habits.camera.world_to_camera),
            intrinsics=np.asarray(habits.camera.intrinsics),
        )
