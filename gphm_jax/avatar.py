"""One person's fitted avatar: what is left of the head model after fitting, and what drives it."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import secrets
import shutil
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from gphm_jax.data.images import fit_square
from gphm_jax.errors import InputError
from gphm_jax.files import to_bytes, write_json
from gphm_jax.gaussians import Fixed, GaussianModel, MotionRegions, pose_splats, regional_displacement
from gphm_jax.geometry import to_world
from gphm_jax.nets import MLP, HeadNetworks, NetworkConfig, use_fused_points
from gphm_jax.render import render_splats
from gphm_jax.settings import from_mapping
from gphm_jax.types import NUM_CHANNELS, Camera, Pose, Render, Splats, pytree

FORMAT, VERSION = "gphm-avatar", 1
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

    f_inj, f_id, f_col, f_att and z_id are gone: their results are variables here. f_dyn is new.
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
        use_fused_points(self, "auto")  # an avatar lives on one device

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
        self, splats: Splats, camera: Camera, *, height: int, width: int, backend: str = "auto"
    ) -> Render:
        """Splats [1 f] seen by cameras [1 f v], refined."""
        features, alpha = render_splats(splats, camera, height=height, width=width, backend=backend)
        return Render(features=features, alpha=alpha, fine=self.networks.refine(features))


def bake(prior: GaussianModel, code: Float[Array, "z"], spec: AvatarSpec, *, seed: int) -> AvatarModel:
    """Evaluates a head model's identity networks for one z_id and keeps the results as an avatar's variables.

    X_id = X0 + f_id(H), Colour = f_col(H), (S, Q, A) = (S0, Q0, A0) + f_att(H); H stays as the point feature.
    The avatar's pictures are those of the head model with this code, since f_dyn starts at zero.
    """
    neutral = nnx.jit(lambda model, z: model.neutral(z))(prior, code[None])
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


@pytree
class Habits:
    """What an avatar does when it is not told: codes and the frontal camera of its training footage."""

    expression: Float[Array, "z"]  # the training frame's nearest to their mean
    motion: Float[Array, "z"]
    camera: Camera  # in canonical space, for images of the avatar's own size


class Avatar:
    """A fitted person that can be saved, loaded, driven and rendered.

    avatar = Avatar.load("out/avatar")
    image, alpha = avatar.render(avatar.encode(face_image))
    """

    def __init__(self, model: AvatarModel, spec: AvatarSpec, habits: Habits, *, backend: str = "auto"):
        self.spec = spec
        self.habits = habits
        self.backend = backend
        self._graphdef, self._state = nnx.split(model)

    @property
    def model(self) -> AvatarModel:
        """A copy of the avatar's variables and networks."""
        return nnx.merge(self._graphdef, self._state, copy=True)

    def encode(
        self, face_image: Float[Array | np.ndarray, "*b h w 3"] | UInt8[np.ndarray, "*b h w 3"]
    ) -> Float[Array, "*b z"]:
        """z_exp = E_exp(face image): a crop of a face, floats in [0, 1] or bytes, of any size; not differentiable."""
        return self._encode(True, _resized(face_image, self.spec.face_size))

    def encode_motion(
        self, nonface_image: Float[Array | np.ndarray, "*b h w 3"] | UInt8[np.ndarray, "*b h w 3"]
    ) -> Float[Array, "*b z"]:
        """z_nf = E_nf(non-face image): the whole picture with the face's box black."""
        return self._encode(False, _resized(nonface_image, self.spec.nonface_size))

    def render(
        self,
        expression: Float[Array | np.ndarray, "*b z"],
        *,
        camera: Camera | None = None,
        pose: Pose | None = None,
        motion: Float[Array | np.ndarray, "*b z"] | None = None,
        size: tuple[int, int] | None = None,
    ) -> tuple[Float[Array, "*b h w 3"], Float[Array, "*b h w"]]:
        """The refined picture over white, and the splats' alpha.

        Left out, `camera` is a frontal one in canonical space, `pose` is none, `motion` is a training sample's
        z_nf and `size` (height, width) is that of the training images. Camera, pose and motion may each have
        the expression's leading axes or none; intrinsics are in pixels of the picture asked for.
        """
        expression = jnp.asarray(expression, jnp.float32)
        batch = expression.shape[:-1]
        height, width = size or (self.spec.image_size,) * 2
        if camera is None:
            camera = self.orbit_camera(0.0, size=(height, width))
        if pose is None:
            pose = Pose(rotation=jnp.zeros(3), translation=jnp.zeros(3), scale=jnp.ones(()))
        motion = self.habits.motion if motion is None else jnp.asarray(motion, jnp.float32)
        count = int(np.prod(batch))

        def flat(x: Array, rank: int) -> Array:
            """Broadcasts over the expression's leading axes and makes them one frame axis, [1 f ...]."""
            x = jnp.asarray(x, jnp.float32)
            own = x.shape[x.ndim - rank :]
            return jnp.broadcast_to(x, (*batch, *own)).reshape(1, count, *own)

        fine, alpha = self._render(
            flat(expression, 1),
            flat(motion, 1),
            Pose(
                rotation=flat(pose.rotation, 1),
                translation=flat(pose.translation, 1),
                scale=flat(pose.scale, 0),
            ),
            Camera(
                world_to_camera=flat(camera.world_to_camera, 2)[:, :, None],
                intrinsics=flat(camera.intrinsics, 2)[:, :, None],
            ),
            height,
            width,
        )
        return fine.reshape(*batch, height, width, 3), alpha.reshape(*batch, height, width)

    def orbit_camera(self, yaw: float, pitch: float = 0.0, *, size: tuple[int, int] | None = None) -> Camera:
        """The habitual camera moved about the head by angles in radians, for a picture of `size` (height, width).

        Positive yaw sees the head's left side (+x), positive pitch its top.
        """
        cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
        about_y = np.array([[cy, 0.0, -sy], [0.0, 1.0, 0.0], [sy, 0.0, cy]])
        about_x = np.array([[1.0, 0.0, 0.0], [0.0, cp, -sp], [0.0, sp, cp]])
        matrix = np.array(self.habits.camera.world_to_camera, np.float64)
        matrix[:3, :3] = matrix[:3, :3] @ about_x @ about_y
        height, width = size or (self.spec.image_size,) * 2
        side = min(height, width)
        intrinsics = np.array(self.habits.camera.intrinsics, np.float64) * (side / self.spec.image_size)
        intrinsics[:, 2] += np.array([(width - side) / 2, (height - side) / 2, 0.0])
        intrinsics[2, 2] = 1.0
        return Camera(
            world_to_camera=jnp.asarray(matrix, jnp.float32), intrinsics=jnp.asarray(intrinsics, jnp.float32)
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a folder: arrays.npz (named arrays, no pickle) and config.json. It appears whole or not at all."""
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        partial.mkdir()
        try:
            arrays = _named(self._state) | _named_habits(self.habits)
            named = {name: np.asarray(value) for name, value in arrays.items()}
            np.savez(partial / "arrays.npz", **named)  # type: ignore[arg-type]  # none is called allow_pickle
            write_json(
                partial / "config.json",
                {"format": FORMAT, "version": VERSION, "spec": dataclasses.asdict(self.spec)},
            )
            if path.exists():
                older = partial.with_name(partial.name + ".old")
                path.rename(older)
                partial.rename(path)
                shutil.rmtree(older)
            else:
                partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, backend: str = "auto") -> Avatar:
        """Reads a folder that `save` wrote; anything missing or of another shape is an `InputError`."""
        path = pathlib.Path(path)
        if not (path / "config.json").is_file() and (path / "avatar" / "config.json").is_file():
            path = path / "avatar"  # the folder of a whole fit
        spec = _read_spec(path)
        graphdef, state = nnx.split(nnx.eval_shape(lambda: _empty_model(spec)))
        z = spec.networks.expression_dim
        habits = Habits(
            expression=jax.ShapeDtypeStruct((z,), jnp.float32),  # type: ignore[arg-type]  # shapes to be filled in
            motion=jax.ShapeDtypeStruct((z,), jnp.float32),  # type: ignore[arg-type]
            camera=Camera(
                world_to_camera=jax.ShapeDtypeStruct((4, 4), jnp.float32),  # type: ignore[arg-type]
                intrinsics=jax.ShapeDtypeStruct((3, 3), jnp.float32),  # type: ignore[arg-type]
            ),
        )
        arrays = _read_arrays(path / "arrays.npz", _named(state) | _named_habits(habits))
        filled = nnx.map_state(lambda name, v: v.replace(jnp.asarray(arrays[_name(name)])), state)
        return cls(
            nnx.merge(graphdef, filled),
            spec,
            Habits(
                expression=jnp.asarray(arrays["habits/expression"]),
                motion=jnp.asarray(arrays["habits/motion"]),
                camera=Camera(
                    world_to_camera=jnp.asarray(arrays["habits/world_to_camera"]),
                    intrinsics=jnp.asarray(arrays["habits/intrinsics"]),
                ),
            ),
            backend=backend,
        )

    def _encode(self, expression: bool, images: Float[np.ndarray, "*b s s 3"]) -> Float[Array, "*b z"]:
        return _encode_images(self._graphdef, expression, self._state, images)

    def _render(
        self, expression: Array, motion: Array, pose: Pose, camera: Camera, height: int, width: int
    ) -> tuple[Array, Array]:
        return _render_frames(
            self._graphdef, height, width, self.backend, self._state, expression, motion, pose, camera
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode_images(graphdef: Any, expression: bool, state: Any, images: Array) -> Array:
    networks = nnx.merge(graphdef, state).networks
    return (networks.expression_encoder if expression else networks.motion_encoder)(images)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _render_frames(
    graphdef: Any,
    height: int,
    width: int,
    backend: str,
    state: Any,
    expression: Array,
    motion: Array,
    pose: Pose,
    camera: Camera,
) -> tuple[Array, Array]:
    model = nnx.merge(graphdef, state)
    picture = model.render(
        model(expression, motion, pose), camera, height=height, width=width, backend=backend
    )
    return picture.fine, picture.alpha


def _resized(image: Any, size: int) -> Float[np.ndarray, "*b s s 3"]:
    pictures = np.asarray(image)
    flat = pictures.reshape(-1, *pictures.shape[-3:])
    # Through bytes, as every picture of the training went.
    squares = [fit_square(to_bytes(picture), size, fill=255) for picture in flat]
    return (np.stack(squares).astype(np.float32) / 255.0).reshape(*pictures.shape[:-3], size, size, 3)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(part) for part in path)


def _named(state: Any) -> dict[str, Any]:
    """Every array of a module's state under its path."""
    return {_name(path): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def _named_habits(habits: Habits) -> dict[str, Any]:
    return {
        "habits/expression": habits.expression,
        "habits/motion": habits.motion,
        "habits/world_to_camera": habits.camera.world_to_camera,
        "habits/intrinsics": habits.camera.intrinsics,
    }


def _empty_model(spec: AvatarSpec) -> AvatarModel:
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


def _read_spec(path: pathlib.Path) -> AvatarSpec:
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"no avatar in {path}: name the folder `avatar` that fit.py wrote") from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}): fit the avatar again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"{file} does not describe an avatar: name the folder `avatar` that fit.py wrote")
    if config.get("version") != VERSION:
        raise InputError(
            f"{file} has version {config.get('version')}, this program reads {VERSION}: fit it again"
        )
    return from_mapping(AvatarSpec, config.get("spec", {}), where=str(file))


def _read_arrays(path: pathlib.Path, wanted: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, checked against the names and shapes wanted."""
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read {path} ({error}): fit the avatar again") from error
    for name, value in wanted.items():
        if name not in arrays or arrays[name].shape != value.shape or arrays[name].dtype != value.dtype:
            found = f"{arrays[name].shape} {arrays[name].dtype}" if name in arrays else "nothing"
            raise InputError(
                f"{path}: '{name}' must be {value.shape} {value.dtype}, found {found}: fit it again"
            )
    return arrays
