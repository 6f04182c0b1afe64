"""Writes a tiny dataset in the layout on disk: coloured balls with dark landmark dots, seen by real cameras."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

NUM_LANDMARKS = 5
# Just inside the front of a head of radius 0.5: eyes, nose, mouth corners (canonical axes: +y up, +z out of the face).
LANDMARKS = 0.4 * np.array(
    [[-0.4, 0.3, 0.87], [0.4, 0.3, 0.87], [0.0, 0.0, 1.0], [-0.3, -0.4, 0.87], [0.3, -0.4, 0.87]], np.float32
)
YAWS = {"0": 0.0, "2": 0.7, "10": np.pi}  # view names that sort otherwise as text; the last sees the back


def write_dataset(
    root: Path,
    *,
    identities: int = 2,
    frames: int = 3,
    views: tuple[str, ...] = tuple(YAWS),
    size: tuple[int, int] = (32, 32),
    synthesized: int = 1,
    face_files: bool = True,
    metadata: dict | None = None,
) -> Path:
    """Writes `root` and returns it. `metadata` None leaves dataset.json out (plain Gaussian Head Avatar data)."""
    for identity in range(identities):
        for frame in range(frames):
            write_frame(root / f"{identity:03d}", identity, frame, views, size, synthesized, face_files)
    if metadata is not None:
        (root / "dataset.json").write_text(json.dumps(metadata))
    return root


def write_frame(
    folder: Path,
    identity: int,
    frame: int,
    views: tuple[str, ...],
    size: tuple[int, int],
    synthesized: int,
    faces: bool,
) -> None:
    name = f"{frame:04d}"
    pictures, cameras, params = (folder / part / name for part in ("images", "cameras", "params"))
    for part in (pictures, cameras, params):
        part.mkdir(parents=True)
    pose = np.array(
        [0.05 * (frame % 5), 0.1 * (identity % 3), 0.0, 0.02 * (frame % 5), -0.01, 0.03], np.float32
    )
    scale = np.float32(1.0 + 0.1 * (identity % 3))
    landmarks = scale * LANDMARKS @ cv2.Rodrigues(pose[:3])[0].T + pose[3:]
    np.savez(params / "params.npz", pose=pose, scale=scale, id_coeff=np.zeros(4), exp_coeff=np.full(3, frame))
    np.save(params / "lmk_3d.npy", landmarks.astype(np.float32))
    color = (
        np.array([0.9 - 0.3 * (identity % 3), 0.5 + 0.1 * (frame % 5), 0.3 + 0.2 * (identity % 3)]) * 255
    ).astype(np.uint8)
    for view in views:
        extrinsic, intrinsic = camera(YAWS[view], size)
        # One view says that its last two rows and its first column are padding.
        recorded = {"recorded": np.array([1, 0, size[1], size[0] - 2])} if view == "2" else {}
        np.savez(cameras / f"camera_{view}.npz", extrinsic=extrinsic, intrinsic=intrinsic, **recorded)
        image, mask = ball(
            extrinsic, intrinsic, pose, scale, landmarks, color, size, shows_face=YAWS[view] < 2.0
        )
        Image.fromarray(image).save(pictures / f"image_{view}.png")
        Image.fromarray(mask).save(pictures / f"mask_{view}.png")
        if faces and YAWS[view] < 2.0:
            height, width = size
            face = image[height // 4 : -height // 4, width // 4 : -width // 4]
            hidden = image.copy()
            hidden[height // 4 : -height // 4, width // 4 : -width // 4] = 0
            Image.fromarray(face).save(pictures / f"face_{view}.jpg")
            Image.fromarray(hidden).save(pictures / f"nonface_{view}.jpg")
    for index in range(synthesized):
        (folder / "expressions" / name).mkdir(parents=True, exist_ok=True)
        other = np.full((16, 16, 3), (40 + 60 * frame) % 256, np.uint8)
        Image.fromarray(other).save(folder / "expressions" / name / f"{index}.jpg")


def camera(yaw: float, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(extrinsic 3x4, intrinsic 3x3) of a camera 3 away on the equator, looking at the origin, OpenCV axes."""
    centre = 3.0 * np.array([np.sin(yaw), 0.0, np.cos(yaw)])
    forward, down = -centre / 3.0, np.array([0.0, -1.0, 0.0])
    rotation = np.stack([np.cross(down, forward), down, forward])
    focal = 1.8 * min(size)
    # The principal point is off the centre, which also keeps landmarks away from the edges between pixels.
    intrinsic = np.array(
        [[focal, 0.0, 0.5 * size[1] + 0.3], [0.0, focal, 0.5 * size[0] - 0.2], [0.0, 0.0, 1.0]]
    )
    return np.concatenate([rotation, -rotation @ centre[:, None]], axis=1), intrinsic


def ball(
    extrinsic: np.ndarray,
    intrinsic: np.ndarray,
    pose: np.ndarray,
    scale: np.floating,
    landmarks: np.ndarray,
    color: np.ndarray,
    size: tuple[int, int],
    *,
    shows_face: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """(image on a green background, mask): the head's disc, with one dark pixel at each landmark in sight."""
    centre = extrinsic[:, :3] @ pose[3:] + extrinsic[:, 3]
    pixel = (intrinsic @ centre)[:2] / centre[2]
    x, y = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)
    radius = 0.5 * scale * intrinsic[0, 0] / centre[2]
    inside = np.hypot(x - pixel[0], y - pixel[1]) < radius
    image = np.where(inside[..., None], color, np.array([20, 200, 20], np.uint8)).astype(np.uint8)
    if shows_face:
        local = landmarks @ extrinsic[:, :3].T + extrinsic[:, 3]
        dots = (local @ intrinsic.T)[:, :2] / local[:, 2:]
        image[dots[:, 1].astype(int), dots[:, 0].astype(int)] = 0
    return image, (inside * 255).astype(np.uint8)
