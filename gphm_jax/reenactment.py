"""A driver's expressions, head poses and cameras -> what an avatar plays, its pictures, and how well it follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import cv2
import numpy as np
from jaxtyping import Array, Float, UInt8

from gphm_jax.avatar import Avatar
from gphm_jax.capture.landmarks import Landmarker
from gphm_jax.data.synthetic.base import ARKIT
from gphm_jax.driver import Driver
from gphm_jax.errors import InputError
from gphm_jax.files import to_bytes
from gphm_jax.smoothing import smoothed, smoothed_rotations
from gphm_jax.types import Camera, Pose

_CHUNK = 16  # faces encoded at once
# Cut-offs at rest in Hz, and what each unit of speed adds: radians or head lengths a second, and the codes' own spread
# a second. A head turns at 1 radian, a blink moves the code by 10 spreads a second: both pass.
_POSE_FILTER = {"cutoff": 1.5, "gain": 5.0}
_CODE_FILTER = {"cutoff": 3.0, "gain": 1.0}
_MOVES = 0.05  # a score with a smaller standard deviation does not move: its correlation would be chance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Direction:
    """How an avatar is to be driven."""

    expression: str = "encoder"  # read from the driver's face image; or from its "scores"
    pose: str = "driver"  # or "still": the head at rest before the avatar's own camera
    neck: str = "driven"  # or "held": the motion code of a training sample
    angle: float = 30.0  # degrees from which the side view looks
    calibrate: bool = True  # the driver's usual code is taken for the avatar's; by the encoder only
    smooth: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Performance:
    """What an avatar plays, by moment."""

    expression: Float[np.ndarray, "t z"]
    motion: Float[np.ndarray, "t z"]
    rotation: Float[np.ndarray, "t 3"]
    translation: Float[np.ndarray, "t 3"]
    scale: Float[np.ndarray, "t"]
    cameras: dict[str, Camera]  # "avatar" and "side", [t]

    def pictures(
        self, avatar: Avatar, moment: int, cameras: Iterable[str]
    ) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """The avatar at one moment, as each of the cameras sees it."""
        splats = avatar.splats(
            self.expression[moment],
            motion=self.motion[moment],
            pose=_pose(self.rotation[moment], self.translation[moment], self.scale[moment]),
        )

        def seen(camera: Camera) -> UInt8[np.ndarray, "h w 3"]:
            now = _camera(camera.world_to_camera[moment], camera.intrinsics[moment])
            return to_bytes(avatar.look(splats, camera=now).fine)

        return {name: seen(self.cameras[name]) for name in cameras}


def perform(
    avatar: Avatar, driver: Driver, direction: Direction, scores: Float[np.ndarray, "n 52"] | None = None
) -> Performance:
    """What `avatar` plays of the driver's recording, smoothed in time; `scores` are its rows', where those drive."""
    rows, spec = list(driver.shown), avatar.spec
    if direction.expression == "scores":
        assert scores is not None and avatar.scores is not None
        expression = avatar.scores.code(scores)
        if expression.shape[1] != spec.networks.expression_dim:
            raise InputError(
                f"the avatar's scores.npz makes codes of {expression.shape[1]} numbers, its networks take "
                f"{spec.networks.expression_dim}: it is another head model's; use --expression=encoder"
            )
    else:
        expression = _encoded(avatar.encode, lambda row: driver.face(row, spec.face_size), len(driver.frames))
        if direction.calibrate:
            # What the encoder makes of a stranger's skin and light is in every code, and the avatar would wear it.
            expression += np.asarray(avatar.habits.expression) - np.median(expression[rows], axis=0)
    if direction.neck == "driven":
        motion = _encoded(
            avatar.encode_motion, lambda row: driver.nonface(row, spec.nonface_size), len(driver.frames)
        )
    else:
        motion = np.repeat(np.asarray(avatar.habits.motion)[None], len(driver.frames), axis=0)
    expression, motion = expression[rows], motion[rows]
    rotation, translation, scale = driver.rotation[rows], driver.translation[rows], driver.scale[rows]
    if direction.smooth:
        expression, motion = _smoothed_codes(expression, driver.fps), _smoothed_codes(motion, driver.fps)
        rotation = smoothed_rotations(rotation, fps=driver.fps, **_POSE_FILTER)
        translation = smoothed(translation, fps=driver.fps, **_POSE_FILTER)
    front, side = _cameras(avatar, driver, direction.angle)
    if direction.pose == "still":
        rotation, translation, scale = 0.0 * rotation, 0.0 * translation, np.ones_like(scale)
        views = [avatar.orbit_camera(np.radians(angle)) for angle in (0.0, direction.angle)]
        front, side = (_repeated(view, len(rows)) for view in views)
    return Performance(
        expression=expression.astype(np.float32),
        motion=motion.astype(np.float32),
        rotation=rotation.astype(np.float32),
        translation=translation.astype(np.float32),
        scale=scale,
        cameras={"avatar": front, "side": side},
    )


def read_scores(
    landmarker: Landmarker, pictures: Iterable[UInt8[np.ndarray, "h w 3"]]
) -> Float[np.ndarray, "n 52"]:
    """The ARKit scores of the largest face of each picture; NaN where there is none."""
    found = []
    for picture in pictures:
        faces = landmarker.detect(picture)
        scores = faces[0].expression if faces else None
        found.append(np.full(len(ARKIT), np.nan, np.float32) if scores is None else scores)
    return np.stack(found) if found else np.zeros((0, len(ARKIT)), np.float32)


def follows(driver: Float[np.ndarray, "n 52"], result: Float[np.ndarray, "n 52"]) -> dict[str, Any]:
    """How an avatar's expression scores follow its driver's over the pictures where both show a face.

    `correlation` is that of all scores together, each about its own mean: those that move much count most. `scores`
    holds each one that moves with the driver, by name, `mean_correlation` their mean. None, and empty, where nothing
    does.
    """
    seen = np.isfinite(driver).all(axis=1) & np.isfinite(result).all(axis=1)
    true, made = driver[seen].astype(np.float64), result[seen].astype(np.float64)
    if not len(true):
        return {"pictures": 0, "correlation": None, "mean_correlation": None, "scores": {}}
    true, made = true - true.mean(axis=0), made - made.mean(axis=0)
    moving = np.flatnonzero(true.std(axis=0) > _MOVES)
    scores = {ARKIT[k]: _correlation(true[:, k], made[:, k]) for k in moving}
    return {
        "pictures": len(true),
        "correlation": _correlation(true.ravel(), made.ravel()),
        # One that stays still in the result does not follow.
        "mean_correlation": float(np.mean([value or 0.0 for value in scores.values()])) if scores else None,
        "scores": scores,
    }


def _correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Of two centred signals; None where one does not move."""
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / lengths if lengths > 0.0 else None


def _encoded(
    encode: Callable[[Any], Array], picture: Callable[[int], np.ndarray], count: int
) -> Float[np.ndarray, "n z"]:
    """The codes of pictures 0 to `count`, in chunks of one size: one compiled program."""
    codes = []
    for start in range(0, count, _CHUNK):
        rows = range(start, min(start + _CHUNK, count))
        pictures = [picture(row) for row in rows]
        pictures += [pictures[-1]] * (_CHUNK - len(pictures))
        codes.append(np.asarray(encode(np.stack(pictures)))[: len(rows)])
    return np.concatenate(codes)


def _smoothed_codes(codes: Float[np.ndarray, "t z"], fps: float) -> Float[np.ndarray, "t z"]:
    spread = float(np.sqrt(codes.var(axis=0).sum()))
    if spread == 0.0:  # nothing moves
        return codes
    return spread * smoothed(codes / spread, fps=fps, **_CODE_FILTER)


def _cameras(avatar: Avatar, driver: Driver, angle: float) -> tuple[Camera, Camera]:
    """The driver's camera by moment, and the same moved about the head's mean place by an angle in degrees."""
    matrices = driver.world_to_camera[list(driver.shown)].astype(np.float64)
    intrinsics = driver.intrinsics(avatar.spec.image_size)[list(driver.shown)]
    place = np.eye(4)
    place[:3, 3] = driver.translation.mean(axis=0)
    turn = np.eye(4)
    up = -matrices[:, 1, :3].mean(axis=0)  # of the picture, in the world
    turn[:3, :3] = cv2.Rodrigues(-np.radians(angle) * up / np.linalg.norm(up))[0]
    aside = matrices @ place @ turn @ np.linalg.inv(place)
    return _camera(matrices, intrinsics), _camera(aside, intrinsics)


def _repeated(camera: Camera, count: int) -> Camera:
    return _camera(*(np.repeat(np.asarray(x)[None], count, axis=0) for x in vars(camera).values()))


def _camera(world_to_camera: Any, intrinsics: Any) -> Camera:
    return Camera(world_to_camera=world_to_camera.astype(np.float32), intrinsics=intrinsics)


def _pose(rotation: Any, translation: Any, scale: Any) -> Pose:
    return Pose(rotation=rotation, translation=translation, scale=scale)
