"""Reads the field's linear face models into `MorphableModel`: BFM 2009, BFM 2017 and 2019, FLAME.

| model | file | beside it, where present |
|---|---|---|
| BFM 2009 | `01_MorphableModel.mat` (micrometres) | expressions: `Exp_Pca.bin`, `std_exp.txt`, `BFM_exp_idx.mat` |
| BFM 2017, 2019 | `model2017-1_*.h5`, `model2019_*.h5` (millimetres) | |
| FLAME | `*.npz` with the arrays of its published pickle (metres) | `landmark_embedding.npz` |

A model is brought to canonical space by the similarity that takes its landmarks to the embedded model's. Landmarks it
does not state (jaw line, MediaPipe's 478) are carried over from the embedded model, bent to the same landmarks.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.io
import scipy.spatial
from jaxtyping import Float
from scipy.io.matlab import MatReadError

from gphm_jax.capture.landmarks import imported
from gphm_jax.errors import InputError
from gphm_jax.morphable import MorphableModel
from gphm_jax.morphable_space import FEWEST_ANCHORS, Anchor, Foreign, canonical
from gphm_jax.paths import expanded

IDENTITY_COMPONENTS, EXPRESSION_COMPONENTS = (
    80,
    64,
)  # of the hundreds that files have: as many as landmarks can tell

# Vertices that stand for iBUG landmarks (counted from 0), as published with the eos library for each model.
_BFM2009 = {
    17: 38792, 19: 40087, 21: 40514, 22: 41091, 24: 41511, 26: 42825, 30: 8319, 33: 8334, 36: 2088, 39: 5959,
    42: 10603, 45: 14472, 48: 5006, 51: 8344, 54: 11714, 57: 8374, 62: 8354, 66: 8366,
}  # fmt: skip
# Names in a BFM 2017 or 2019 file's own list.
_BFM2017 = {
    "center.chin.tip": 8, "center.nose.tip": 30, "right.eye.corner_outer": 36, "right.eye.corner_inner": 39,
    "left.eye.corner_inner": 42, "left.eye.corner_outer": 45, "right.lips.corner": 48,
    "center.lips.upper.outer": 51, "left.lips.corner": 54, "center.lips.lower.outer": 57,
    "center.lips.upper.inner": 62, "center.lips.lower.inner": 66,
}  # fmt: skip
_FLAME_SHAPES = 300  # columns of shapedirs; expressions follow
_FLAME_JAW = 2  # joint
_JAW_SPREAD = 0.15  # radians


def load(path: str | os.PathLike[str], *, landmarks: str | os.PathLike[str] | None = None) -> MorphableModel:
    """The face model in a file, told apart by its layout.

    `landmarks` overrides the model's own: a text file with the 68 vertex numbers (from 0) in iBUG order, or an .npz
    like FLAME's landmark embedding. Raises `InputError` for files that are missing, damaged, pickled, or of a
    layout that none of the models has.
    """
    path = expanded(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist: give a face model's file (.mat, .h5 or .npz)")
    readers: dict[str, Callable[[pathlib.Path], Foreign]] = {
        ".mat": _bfm2009,
        ".h5": _bfm2017,
        ".npz": _flame,
    }
    if path.suffix == ".pkl":
        raise InputError(
            f"{path} is a pickle, which may run code: load it where you trust it and write its arrays with "
            "numpy.savez(file, **{name: numpy.asarray(value)}) (J_regressor.toarray()), then give the .npz"
        )
    if path.suffix not in readers:
        raise InputError(f"{path}: not a face model's file; known are BFM (.mat, .h5) and FLAME (.npz)")
    read = readers[path.suffix](path)
    if landmarks is not None:
        read = dataclasses.replace(read, anchors=_landmark_file(expanded(landmarks), read))
    if len(read.anchors) < FEWEST_ANCHORS:
        raise InputError(
            f"{path}: {len(read.anchors)} known landmarks, at least {FEWEST_ANCHORS} are needed: give a file with "
            "the 68 vertex numbers"
        )
    return canonical(read)


def _array(arrays: Mapping[str, Any], name: str, path: pathlib.Path, dimensions: int) -> np.ndarray:
    """One array of a file, with so many axes."""
    try:
        value = np.asarray(arrays[name])
    except KeyError:
        raise InputError(f"{path} has no {name}: not the layout of a known face model") from None
    except ValueError as error:
        raise InputError(f"{path}: {name} is pickled ({error}): write it as a plain array") from error
    if value.ndim != dimensions or value.dtype.kind not in "iuf":
        raise InputError(
            f"{path}: {name} is {value.dtype}{list(value.shape)}, expected {dimensions} axes of numbers"
        )
    return value


def _columns(basis: np.ndarray, deviations: np.ndarray, most: int) -> Float[np.ndarray, "v 3 k"]:
    """Columns of interleaved x, y, z, each scaled by its standard deviation."""
    deviations = deviations.ravel()[:most]
    return (basis[:, : len(deviations)] * deviations).reshape(-1, 3, len(deviations)).astype(np.float32)


def _no_limits(count: int) -> Float[np.ndarray, "ke 2"]:
    return np.tile(np.array([-np.inf, np.inf], np.float32), (count, 1))


def _at_vertices(table: Mapping[int, int], count: int) -> dict[int, Anchor]:
    one = np.array([1.0, 0.0, 0.0], np.float32)
    return {mark: (np.full(3, vertex), one) for mark, vertex in table.items() if 0 <= vertex < count}


def _read_matlab(path: pathlib.Path) -> dict[str, Any]:
    try:
        return scipy.io.loadmat(path)
    except (MatReadError, ValueError, NotImplementedError, OSError, EOFError, TypeError) as error:
        raise InputError(f"{path} cannot be read as a MATLAB 5 file ({error}): fetch it again") from error


def _bfm2009(path: pathlib.Path) -> Foreign:
    arrays = _read_matlab(path)
    mean = _array(arrays, "shapeMU", path, 2).reshape(-1, 3)
    identity = _columns(
        _array(arrays, "shapePC", path, 2), _array(arrays, "shapeEV", path, 2), IDENTITY_COMPONENTS
    )
    faces = _array(arrays, "tl", path, 2).astype(np.int64) - 1  # MATLAB counts from 1
    expression, kept = _bfm2009_expressions(path.parent, len(mean))
    place = np.full(len(mean), -1)
    place[kept] = np.arange(len(kept))
    faces = place[faces]
    return Foreign(
        name="BFM 2009",
        mean=mean[kept],
        identity_basis=identity[kept],
        expression_basis=expression,
        expression_spread=np.ones(expression.shape[-1], np.float32),
        expression_range=_no_limits(expression.shape[-1]),
        faces=faces[(faces >= 0).all(1)],
        anchors=_at_vertices({k: int(place[v]) for k, v in _BFM2009.items() if v < len(mean)}, len(kept)),
    )


def _bfm2009_expressions(folder: pathlib.Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Expression basis of FaceWarehouse on BFM (Guo et al.) and the BFM vertices it covers; none without the files."""
    binary, deviations, trimmed = (folder / n for n in ("Exp_Pca.bin", "std_exp.txt", "BFM_exp_idx.mat"))
    if not binary.exists():
        return np.zeros((count, 3, 0), np.float32), np.arange(count)
    for needed in (deviations, trimmed):
        if not needed.exists():
            raise InputError(
                f"{needed} does not exist, but {binary} needs it: put both beside the model, or neither"
            )
    kept = _array(_read_matlab(trimmed), "trimIndex", trimmed, 2).ravel().astype(np.int64) - 1
    spread = np.loadtxt(deviations, ndmin=1)
    number = int(np.fromfile(binary, np.int32, 1)[0])
    values = np.fromfile(binary, np.float32, offset=4)  # the mean, then one vector after the other
    if len(values) != (number + 1) * 3 * len(kept) or len(spread) < number or kept.max() >= count:
        raise InputError(
            f"{binary}: {len(values)} numbers for {number} expressions of {len(kept)} vertices: fetch it again"
        )
    basis = values.reshape(number + 1, -1)[1:].T
    return _columns(basis, spread[:number], EXPRESSION_COMPONENTS), kept


def _bfm2017(path: pathlib.Path) -> Foreign:
    h5py = imported("h5py", "footage")
    try:
        with h5py.File(path, "r") as file:
            return _bfm2017_open(file, path)
    except OSError as error:
        raise InputError(f"{path} cannot be read as HDF5 ({error}): fetch it again") from error


def _bfm2017_open(file: Any, path: pathlib.Path) -> Foreign:
    parts = {}
    for part, most in (("shape", IDENTITY_COMPONENTS), ("expression", EXPRESSION_COMPONENTS)):
        mean = _array(file, f"{part}/model/mean", path, 1)
        variance = _array(file, f"{part}/model/pcaVariance", path, 1)
        basis = _array(file, f"{part}/model/pcaBasis", path, 2)
        parts[part] = mean.reshape(-1, 3), _columns(basis, np.sqrt(variance), most)
    (mean, identity), (offset, expression) = parts["shape"], parts["expression"]
    marks = {}
    if "metadata/landmarks/json" in file:
        tree = scipy.spatial.cKDTree(mean)
        for mark in json.loads(np.asarray(file["metadata/landmarks/json"][()]).tobytes().rstrip(b"\0")):
            if mark["id"] in _BFM2017:
                marks[_BFM2017[mark["id"]]] = int(tree.query(mark["coordinates"])[1])
    return Foreign(
        name="BFM 2017",
        mean=mean + offset,
        identity_basis=identity,
        expression_basis=expression,
        expression_spread=np.ones(expression.shape[-1], np.float32),
        expression_range=_no_limits(expression.shape[-1]),
        faces=_array(file, "shape/representer/cells", path, 2).T.astype(np.int64),
        anchors=_at_vertices(marks, len(mean)),
    )


def _flame(path: pathlib.Path) -> Foreign:
    try:
        arrays = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as .npz ({error}): fetch or convert it again") from error
    with arrays:
        template = _array(arrays, "v_template", path, 2)
        directions = _array(arrays, "shapedirs", path, 3)
        if directions.shape[2] <= _FLAME_SHAPES:
            raise InputError(
                f"{path}: shapedirs has {directions.shape[2]} columns, expected {_FLAME_SHAPES} and expressions"
            )
        expression = directions[:, :, _FLAME_SHAPES:][:, :, :EXPRESSION_COMPONENTS]
        jaw = _flame_jaw(template, *(_array(arrays, n, path, d) for n, d in (
            ("J_regressor", 2), ("weights", 2), ("posedirs", 3))))  # fmt: skip
        read = Foreign(
            name="FLAME",
            mean=template,
            identity_basis=directions[:, :, : min(_FLAME_SHAPES, IDENTITY_COMPONENTS)],
            expression_basis=np.concatenate([expression, jaw], -1),
            expression_spread=np.concatenate([np.ones(expression.shape[-1]), np.full(3, _JAW_SPREAD)]),
            # The jaw turns about x alone by much, and only opens.
            expression_range=np.concatenate(
                [_no_limits(expression.shape[-1]), [[-0.05, 0.6], [-0.2, 0.2], [-0.1, 0.1]]]
            ),
            faces=_array(arrays, "f", path, 2).astype(np.int64),
            anchors={},
        )
    marks = path.with_name("landmark_embedding.npz")
    if marks.exists():
        return dataclasses.replace(read, anchors=_landmark_file(marks, read))
    return read


def _flame_jaw(
    template: np.ndarray, joints: np.ndarray, weights: np.ndarray, corrections: np.ndarray
) -> Float[np.ndarray, "v 3 3"]:
    """Displacement for a radian of each jaw rotation, to first order: skinning, and the correction for the pose."""
    arms = template - joints[_FLAME_JAW] @ template
    columns = []
    for axis in np.eye(3):
        skinned = weights[:, _FLAME_JAW, None] * np.cross(axis, arms)
        turn = np.cross(axis, np.eye(3)).T  # derivative of the rotation matrix: what it does to each axis
        features = corrections[:, :, 9 * (_FLAME_JAW - 1) : 9 * _FLAME_JAW]
        columns.append(skinned + features @ turn.ravel())
    return np.stack(columns, -1)


def _landmark_file(path: pathlib.Path, read: Foreign) -> dict[int, Anchor]:
    """The 68 landmarks of a text file with vertex numbers, or of an .npz with faces and barycentric weights."""
    if path.suffix in (".npy", ".pkl"):
        raise InputError(
            f"{path} is a pickle, which may run code: where you trust it, write "
            "numpy.savez('landmark_embedding.npz', **numpy.load(file, allow_pickle=True).item())"
        )
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                triangles = _array(file, "full_lmk_faces_idx", path, 2).ravel()
                weights = _array(file, "full_lmk_bary_coords", path, 3).reshape(-1, 3)
            corners = read.faces[triangles]
        else:
            corners = np.repeat(np.loadtxt(path, dtype=np.int64).reshape(-1, 1), 3, 1)
            weights = np.tile(np.array([1.0, 0.0, 0.0]), (len(corners), 1))
    except (OSError, ValueError, IndexError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as landmarks ({error})") from error
    if len(corners) != 68 or corners.min() < 0 or corners.max() >= len(read.mean):
        raise InputError(
            f"{path}: {len(corners)} landmarks, expected 68 vertex numbers below {len(read.mean)}"
        )
    return {mark: (corners[mark], weights[mark].astype(np.float32)) for mark in range(68)}
