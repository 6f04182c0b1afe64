"""Linear face models: a mesh that is a mean plus an identity and an expression part, and landmarks on it.

Every model, wherever it comes from, lives in the canonical space of `gphm_jax.types`: +y up, +z out of the face,
origin between the ears, head length 1. `embedded()` needs no file but the synthetic heads' assets; files of the
field's models are read by `gphm_jax.morphable_files`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import zipfile

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gphm_jax.data.synthetic import base, linear
from gphm_jax.errors import InputError
from gphm_jax.files import atomic_path
from gphm_jax.paths import cache_folder
from gphm_jax.types import pytree

SCHEMES = ("ibug68", "mediapipe478")
_EMBEDDED_VERSION = 2


@pytree
class LandmarkSet:
    """Points on a model's surface: each a weighted mean of three vertices, with weights that sum to one.

    A detector marks them a little off, depending on where it sees them from: at the point moved by `drift` times the
    direction's `gphm_jax.data.synthetic.landmarks.view_terms`, in canonical space.
    """

    vertices: Int[Array | np.ndarray, "k 3"]
    weights: Float[Array | np.ndarray, "k 3"]
    trust: Float[Array | np.ndarray, "k"]  # 1 for a detector's steady marks, less for those that wander
    drift: Float[Array | np.ndarray, "k 3 6"]


@pytree
class MorphableModel:
    """x = mean + identity_basis a + expression_basis b.

    An identity coefficient of 1 is one standard deviation. An expression coefficient has the standard deviation
    `expression_spread` and hardly ever leaves `expression_range` (infinite where a model states none).
    """

    mean: Float[Array | np.ndarray, "v 3"]
    identity_basis: Float[Array | np.ndarray, "v 3 ki"]
    expression_basis: Float[Array | np.ndarray, "v 3 ke"]
    expression_spread: Float[Array | np.ndarray, "ke"]
    expression_range: Float[Array | np.ndarray, "ke 2"]
    faces: Int[Array | np.ndarray, "m 3"]
    landmark_sets: dict[str, LandmarkSet]
    name: str = dataclasses.field(metadata={"static": True})
    expression_names: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})

    def shape(
        self, identity: Float[Array | np.ndarray, "*b ki"], expression: Float[Array | np.ndarray, "*b ke"]
    ) -> Float[Array | np.ndarray, "*b v 3"]:
        """The mesh of a person with an expression."""
        return _blend(self.mean, self.identity_basis, self.expression_basis, identity, expression)

    def landmarks(
        self,
        scheme: str,
        identity: Float[Array | np.ndarray, "*b ki"],
        expression: Float[Array | np.ndarray, "*b ke"],
    ) -> Float[Array | np.ndarray, "*b k 3"]:
        """The landmarks of a scheme, at the cost of their own vertices alone."""
        part = self.landmark_part(scheme)
        return _blend(part.mean, part.identity_basis, part.expression_basis, identity, expression)

    def landmark_part(self, scheme: str) -> LandmarkPart:
        """Mean and bases at a scheme's landmarks; raises `InputError` for a scheme that this model lacks."""
        if scheme not in self.landmark_sets:
            known = ", ".join(sorted(self.landmark_sets)) or "none"
            raise InputError(f"face model {self.name} has no landmarks {scheme!r}, only: {known}")
        marks = self.landmark_sets[scheme]

        def at_landmarks(values: Array | np.ndarray) -> Array | np.ndarray:
            corners = values[marks.vertices]  # [k 3 3 ...]
            weights = marks.weights.reshape(*marks.weights.shape, *(1,) * (values.ndim - 1))
            return (corners * weights).sum(1)

        return LandmarkPart(
            mean=at_landmarks(self.mean),
            identity_basis=at_landmarks(self.identity_basis),
            expression_basis=at_landmarks(self.expression_basis),
            expression_spread=self.expression_spread,
            expression_range=self.expression_range,
            trust=marks.trust,
            drift=marks.drift,
        )


@pytree
class LandmarkPart:
    """A model cut down to its landmarks."""

    mean: Float[Array | np.ndarray, "k 3"]
    identity_basis: Float[Array | np.ndarray, "k 3 ki"]
    expression_basis: Float[Array | np.ndarray, "k 3 ke"]
    expression_spread: Float[Array | np.ndarray, "ke"]
    expression_range: Float[Array | np.ndarray, "ke 2"]
    trust: Float[Array | np.ndarray, "k"]
    drift: Float[Array | np.ndarray, "k 3 6"]


def _blend(
    mean: Float[Array | np.ndarray, "n 3"],
    identity_basis: Float[Array | np.ndarray, "n 3 ki"],
    expression_basis: Float[Array | np.ndarray, "n 3 ke"],
    identity: Float[Array | np.ndarray, "*b ki"],
    expression: Float[Array | np.ndarray, "*b ke"],
) -> Float[Array | np.ndarray, "*b n 3"]:
    neutral = jnp.einsum("nck,...k->...nc", identity_basis, identity)
    moved = neutral + jnp.einsum("nck,...k->...nc", expression_basis, expression)
    return jnp.broadcast_to(jnp.asarray(mean), moved.shape) + moved


def embedded() -> MorphableModel:
    """The model made of the synthetic heads: PCA over random people, and the 52 ARKit units.

    The first call takes seconds and keeps its result in the user's cache folder; a change of the assets or of the
    recipe makes it anew. Raises `InputError` when the assets are missing.
    """
    recipe = _recipe()
    path = cache_folder() / "morphable" / "embedded.npz"
    arrays = _read_cached(path, recipe)
    if arrays is None:
        arrays = linear.build() | {f"recipe/{key}": np.array(value) for key, value in recipe.items()}
        with atomic_path(path) as partial:
            np.savez(partial, allow_pickle=False, **arrays)
    return MorphableModel(
        **{name: value for name, value in arrays.items() if "/" not in name},
        landmark_sets={
            scheme: LandmarkSet(
                **{part: arrays[f"{scheme}/{part}"] for part in ("vertices", "weights", "trust", "drift")}
            )
            for scheme in SCHEMES
        },
        name="embedded",
        expression_names=base.ARKIT,
    )


def _recipe() -> dict[str, str]:
    """Everything the embedded model depends on, as text; kept in its file."""
    digest = hashlib.sha256()
    for path in linear.source_files():
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return {
        "version": str(_EMBEDDED_VERSION),
        "people": str(linear.PEOPLE),
        "seed": str(linear.SEED),
        "sources_sha256": digest.hexdigest(),
    }


def _read_cached(path: pathlib.Path, recipe: dict[str, str]) -> dict[str, np.ndarray] | None:
    """The arrays of a file made by this very recipe; None when there is none, or it cannot be read."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            if any(str(file[f"recipe/{key}"]) != value for key, value in recipe.items()):
                return None
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # absent, cut short or of an older form: it is made again
