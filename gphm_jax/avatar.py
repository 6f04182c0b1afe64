"""One person's fitted avatar as its users meet it: load, save, encode, render."""

from __future__ import annotations

import dataclasses
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

from gphm_jax.avatar_drawing import (
    REST,
    Drive,
    Picture,
    Structure,
    draw_picture,
    encode_images,
    look_at,
    move_splats,
)
from gphm_jax.avatar_model import AvatarModel, AvatarSpec, empty_model
from gphm_jax.data.images import fit_square
from gphm_jax.errors import InputError
from gphm_jax.files import to_bytes, write_json
from gphm_jax.nets import use_fused_points
from gphm_jax.scores import FILE as SCORES_FILE
from gphm_jax.scores import ScoreRegressor, load_scores
from gphm_jax.settings import from_mapping
from gphm_jax.types import Camera, Pose, Render, Splats, pytree

FORMAT, VERSION = "gphm-avatar", 1


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

    def __init__(
        self,
        model: AvatarModel,
        spec: AvatarSpec,
        habits: Habits,
        *,
        scores: ScoreRegressor | None = None,
        backend: str = "auto",
    ):
        self.spec = spec
        self.habits = habits
        self.scores = scores  # from 52 ARKit scores to codes; None where the head model has no such map
        self.backend = backend
        model = nnx.clone(model)  # the caller's own keeps its backend
        use_fused_points(model, backend)  # an avatar lives on one device
        graphdef, self._state = nnx.split(model)
        self._structure = Structure(graphdef)

    @property
    def model(self) -> AvatarModel:
        """A copy of the avatar's variables and networks."""
        return nnx.merge(self._structure.graphdef, self._state, copy=True)

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
        refine: bool = True,
    ) -> tuple[Float[Array, "*b h w 3"], Float[Array, "*b h w"]]:
        """The picture over white, and the splats' alpha: what `draw` calls `fine` and `alpha`."""
        picture = self.draw(expression, camera=camera, pose=pose, motion=motion, size=size, refine=refine)
        return picture.fine, picture.alpha

    def draw(
        self,
        expression: Float[Array | np.ndarray, "*b z"],
        *,
        camera: Camera | None = None,
        pose: Pose | None = None,
        motion: Float[Array | np.ndarray, "*b z"] | None = None,
        size: tuple[int, int] | None = None,
        refine: bool = True,
    ) -> Render:
        """The refined picture, the coarse one (`features` holds its three channels alone) and alpha, over white.

        Left out, `camera` is a frontal one in canonical space, `pose` is none, `motion` is a training sample's
        z_nf and `size` (height, width) is that of the training images. Camera, pose and motion may each have
        the expression's leading axes or none; intrinsics are in pixels of the picture asked for. Without `refine`
        the fine picture is the coarse one, in about half the time: three channels are splatted, not all.

        One compiled program for each size, `refine` and shape of the leading axes.
        """
        picture, drive = self._picture(size, refine), self._drive(expression, motion, pose)
        return draw_picture(self._structure, picture, self._state, drive, self._seen(camera, size))

    def splats(
        self,
        expression: Float[Array | np.ndarray, "*b z"],
        *,
        pose: Pose | None = None,
        motion: Float[Array | np.ndarray, "*b z"] | None = None,
    ) -> Splats:
        """The Gaussians that `draw` splats, with all their channels; `pose` and `motion` as there."""
        return move_splats(self._structure, self._state, self._drive(expression, motion, pose))

    def look(
        self,
        splats: Splats,
        *,
        camera: Camera | None = None,
        size: tuple[int, int] | None = None,
        refine: bool = True,
    ) -> Render:
        """What `draw` draws, of Gaussians that `splats` gave: many views of one moment move them once."""
        return look_at(
            self._structure, self._picture(size, refine), self._state, splats, self._seen(camera, size)
        )

    def _drive(self, expression: Any, motion: Any | None, pose: Pose | None) -> Drive:
        return Drive(
            expression=expression,
            motion=self.habits.motion if motion is None else motion,
            pose=REST if pose is None else pose,
        )

    def _picture(self, size: tuple[int, int] | None, refine: bool) -> Picture:
        height, width = size or (self.spec.image_size,) * 2
        return Picture(height=height, width=width, refine=refine, backend=self.backend)

    def _seen(self, camera: Camera | None, size: tuple[int, int] | None) -> Camera:
        return self.orbit_camera(0.0, size=size) if camera is None else camera

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
        # Not jnp.asarray, which compiles a program for every shape of array that it meets.
        moved, lens = jax.device_put((matrix.astype(np.float32), intrinsics.astype(np.float32)))
        return Camera(world_to_camera=moved, intrinsics=lens)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a folder: arrays.npz, scores.npz if any (no pickle in either), config.json; whole or not at all."""
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        partial.mkdir()
        try:
            arrays = _named(self._state) | _named_habits(self.habits)
            named = {name: np.asarray(value) for name, value in arrays.items()}
            np.savez(partial / "arrays.npz", **named)  # type: ignore[arg-type]  # none is called allow_pickle
            if self.scores is not None:
                self.scores.save(partial / SCORES_FILE)
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

    @staticmethod
    def home(path: str | os.PathLike[str]) -> pathlib.Path:
        """The avatar's own folder where `path` may be that of its fit, which has a config.json too."""
        path = pathlib.Path(path)
        return path / "avatar" if (path / "avatar" / "config.json").is_file() else path

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, backend: str = "auto") -> Avatar:
        """Reads a folder that `save` wrote; anything missing or of another shape is an `InputError`."""
        path = cls.home(path)
        spec = _read_spec(path)
        graphdef, state = nnx.split(nnx.eval_shape(lambda: empty_model(spec)))
        z = spec.networks.expression_dim
        habits = Habits(
            expression=jax.ShapeDtypeStruct((z,), jnp.float32),  # type: ignore[arg-type]  # shapes to be filled in
            motion=jax.ShapeDtypeStruct((z,), jnp.float32),  # type: ignore[arg-type]
            camera=Camera(
                world_to_camera=jax.ShapeDtypeStruct((4, 4), jnp.float32),  # type: ignore[arg-type]
                intrinsics=jax.ShapeDtypeStruct((3, 3), jnp.float32),  # type: ignore[arg-type]
            ),
        )
        arrays = jax.device_put(_read_arrays(path / "arrays.npz", _named(state) | _named_habits(habits)))
        filled = nnx.map_state(lambda name, v: v.replace(arrays[_name(name)]), state)
        return cls(
            nnx.merge(graphdef, filled),
            spec,
            Habits(
                expression=arrays["habits/expression"],
                motion=arrays["habits/motion"],
                camera=Camera(
                    world_to_camera=arrays["habits/world_to_camera"], intrinsics=arrays["habits/intrinsics"]
                ),
            ),
            scores=load_scores(path),
            backend=backend,
        )

    def _encode(self, expression: bool, images: Float[np.ndarray, "*b s s 3"]) -> Float[Array, "*b z"]:
        return encode_images(self._structure, expression, self._state, images)


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


def _read_spec(path: pathlib.Path) -> AvatarSpec:
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"no avatar in {path}: name the folder `avatar` that fit.py wrote") from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}): fit the avatar again") from error
    if any((path / "checkpoints").glob("stage*")):
        raise InputError(f"{path} holds a head model, not an avatar: fit one with fit.py --prior={path}")
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
