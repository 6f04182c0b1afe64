"""Face models of the field, in fixtures with their files' names, shapes, types, units and index conventions."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import scipy.io

from gphm_jax import morphable, morphable_files
from gphm_jax.errors import InputError

TURN = np.array([[1.0, 0.0, 0.0], [0.0, 0.96, -0.28], [0.0, 0.28, 0.96]])  # a nod: file spaces are not ours
HEAD = 0.24  # metres


@pytest.fixture(scope="module")
def ours() -> morphable.MorphableModel:
    return morphable.embedded()


def away(points: np.ndarray, unit: float) -> np.ndarray:
    """Canonical points in another model's space: `unit` is how many of its units a metre has."""
    return HEAD * unit * (points @ TURN.T + np.array([0.0, 0.1, -0.3]))


def turned(basis: np.ndarray, unit: float) -> np.ndarray:
    return HEAD * unit * np.einsum("xy,vyk->vxk", TURN, basis)


def same_space(model: morphable.MorphableModel, ours: morphable.MorphableModel, vertices: np.ndarray) -> None:
    """The fixture is the embedded model in disguise: all must come back."""
    np.testing.assert_allclose(model.mean[vertices], ours.mean, atol=1e-3)
    np.testing.assert_allclose(model.identity_basis[vertices][..., :5], ours.identity_basis[..., :5], atol=1e-4)
    assert not model.identity_basis[..., 5:].any()  # FLAME's fixture has more, all zero
    for scheme in morphable.SCHEMES:
        offset = model.landmark_part(scheme).mean - ours.landmark_part(scheme).mean
        assert np.linalg.norm(offset, axis=-1).max() < 0.02, scheme


def flat(basis: np.ndarray) -> np.ndarray:
    return basis.reshape(-1, basis.shape[-1]).astype(np.float32)


def write_bfm2009(folder: pathlib.Path, ours: morphable.MorphableModel) -> tuple[pathlib.Path, np.ndarray]:
    """53,490 vertices in micrometres; the embedded model's first, then fillers, landmarks where BFM has them."""
    rng = np.random.default_rng(0)
    source = np.concatenate(
        [np.arange(len(ours.mean)), rng.integers(0, len(ours.mean), 53490 - len(ours.mean))]
    )
    points = ours.mean[source].astype(np.float64)
    marks, marked = ours.landmark_part("ibug68"), ours.landmark_sets["ibug68"].vertices[:, 0]
    for number, vertex in morphable_files._BFM2009.items():
        source[vertex] = marked[number]
        points[vertex] = marks.mean[number]
    placed = np.flatnonzero(source[: len(ours.mean)] != np.arange(len(ours.mean)))
    deviations = np.linspace(2.0, 1.0, 199)[:, None].astype(np.float32) * 1e4
    basis = np.zeros((3 * len(source), 199), np.float32)
    basis[:, :5] = flat(turned(ours.identity_basis[source, :, :5], 1e6)) / deviations[:5, 0]
    path = folder / "01_MorphableModel.mat"
    scipy.io.savemat(
        path,
        {
            "shapeMU": away(points, 1e6).reshape(-1, 1).astype(np.float32),
            "shapePC": basis,
            "shapeEV": deviations,
            "tl": (ours.faces + 1).astype(np.float64),
        },
    )
    return path, placed


def write_expressions(folder: pathlib.Path, ours: morphable.MorphableModel) -> np.ndarray:
    """The expression files of Guo et al., for all vertices but the first 275."""
    kept = np.arange(275, 53490)
    vectors = np.zeros((79, len(kept), 3), np.float32)
    vectors[:, : len(ours.mean) - 275] = (
        100.0 * np.arange(1, 80)[:, None, None] * TURN[:, 1]
    )  # along canonical +y
    with (folder / "Exp_Pca.bin").open("wb") as file:
        np.array([79], np.int32).tofile(file)
        np.zeros(3 * len(kept), np.float32).tofile(file)
        vectors.tofile(file)
    (folder / "std_exp.txt").write_text(" ".join(["2.0"] * 79) + "\n")
    scipy.io.savemat(folder / "BFM_exp_idx.mat", {"trimIndex": (kept + 1)[:, None].astype(np.float64)})
    return kept


def test_bfm_2009(tmp_path, ours):
    path, placed = write_bfm2009(tmp_path, ours)
    model = morphable_files.load(path)
    assert (
        model.name == "BFM 2009" and model.mean.shape == (53490, 3) and model.expression_basis.shape[-1] == 0
    )
    assert len(placed) < 20
    kept = np.setdiff1d(np.arange(len(ours.mean)), placed)
    np.testing.assert_allclose(model.mean[kept], ours.mean[kept], atol=1e-3)
    np.testing.assert_allclose(model.identity_basis[kept, :, :5], ours.identity_basis[kept, :, :5], atol=1e-4)
    chin = model.landmark_part("ibug68").mean[8]
    assert np.linalg.norm(chin - ours.landmark_part("ibug68").mean[8]) < 0.03, (
        "carried over: not in BFM's list"
    )
    assert model.landmark_sets["ibug68"].trust[8] < model.landmark_sets["ibug68"].trust[30] == 1.0


def test_bfm_2009_with_expressions(tmp_path, ours):
    write_bfm2009(tmp_path, ours)
    kept = write_expressions(tmp_path, ours)
    model = morphable_files.load(tmp_path / "01_MorphableModel.mat")
    assert model.mean.shape == (len(kept), 3)
    # The k-th vector is 100 k micrometres up with deviation 2; a head is 240,000 micrometres.
    np.testing.assert_allclose(model.expression_basis[0, :, 9], [0.0, 2000.0 / 240000.0, 0.0], atol=1e-4)
    assert model.faces.max() < len(kept) and len(model.faces) > 8000
    (tmp_path / "std_exp.txt").unlink()
    with pytest.raises(InputError, match=r"std_exp.txt does not exist, but .*Exp_Pca.bin needs it"):
        morphable_files.load(tmp_path / "01_MorphableModel.mat")


def write_bfm2017(path: pathlib.Path, ours: morphable.MorphableModel) -> None:
    h5py = pytest.importorskip("h5py")
    variance = np.linspace(4.0, 1.0, 5)
    marks = ours.landmark_part("ibug68").mean
    named = [
        {"id": name, "coordinates": away(marks[number], 1e3).tolist()}
        for name, number in morphable_files._BFM2017.items()
    ] + [{"id": "left.ear.lobule", "coordinates": [0.0, 0.0, 0.0]}]
    text = np.frombuffer(json.dumps(named).encode(), np.int8)
    with h5py.File(path, "w") as file:
        file["shape/model/mean"] = away(ours.mean, 1e3).ravel().astype(np.float32)
        file["shape/model/pcaBasis"] = flat(turned(ours.identity_basis[..., :5], 1e3)) / np.sqrt(variance)
        file["shape/model/pcaVariance"] = variance
        file["expression/model/mean"] = np.zeros(ours.mean.size, np.float32)
        file["expression/model/pcaBasis"] = flat(turned(ours.expression_basis[..., :4], 1e3)) / 3.0
        file["expression/model/pcaVariance"] = np.full(4, 9.0)
        file["shape/representer/cells"] = ours.faces.T.astype(np.uint32)
        file["metadata/landmarks/json"] = text


def test_bfm_2017(tmp_path, ours):
    path = tmp_path / "model2017-1_face12_nomouth.h5"
    write_bfm2017(path, ours)
    model = morphable_files.load(path)
    same_space(model, ours, np.arange(len(ours.mean)))
    np.testing.assert_allclose(model.expression_basis, ours.expression_basis[..., :4], atol=1e-4)
    assert np.isinf(model.expression_range).all() and (model.expression_spread == 1).all()


def write_flame(path: pathlib.Path, ours: morphable.MorphableModel, **changes: np.ndarray) -> None:
    vertices = len(ours.mean)
    directions = np.zeros((vertices, 3, 400), np.float32)
    directions[..., :5] = turned(ours.identity_basis[..., :5], 1.0)
    directions[..., 300:304] = turned(ours.expression_basis[..., :4], 1.0)
    joints = np.zeros((5, vertices))
    joints[2, 0] = 1.0  # the jaw turns about vertex 0
    weights = np.zeros((vertices, 5))
    weights[:, 2], weights[0, 2] = 0.5, 1.0
    poses = np.zeros((vertices, 3, 36))
    poses[7, 0, 9 + 5] = 0.01  # entry (1, 2) of the jaw's rotation matrix
    arrays = {
        "v_template": away(ours.mean, 1.0), "shapedirs": directions, "posedirs": poses, "J_regressor": joints,
        "weights": weights, "kintree_table": np.array([[-1, 0, 1, 1, 1], [0, 1, 2, 3, 4]]),
        "f": ours.faces.astype(np.uint32),
    }  # fmt: skip
    np.savez(path, **(arrays | changes))


def write_embedding(path: pathlib.Path, ours: morphable.MorphableModel) -> None:
    """Barycentric landmarks: FLAME's list of faces, each landmark at one corner."""
    marks = ours.landmark_sets["ibug68"].vertices[:, 0]
    faces = np.array([np.flatnonzero((ours.faces == vertex).any(1))[0] for vertex in marks])
    weights = (ours.faces[faces] == marks[:, None]).astype(np.float64)
    np.savez(path, full_lmk_faces_idx=faces[None], full_lmk_bary_coords=weights[None])


def test_flame(tmp_path, ours):
    write_flame(tmp_path / "flame2020.npz", ours)
    write_embedding(tmp_path / "landmark_embedding.npz", ours)
    model = morphable_files.load(tmp_path / "flame2020.npz")
    same_space(model, ours, np.arange(len(ours.mean)))
    np.testing.assert_allclose(model.expression_basis[..., :4], ours.expression_basis[..., :4], atol=1e-4)
    assert (model.landmark_sets["ibug68"].trust == 1).all()


def test_flame_jaw_is_the_derivative_of_its_turn(tmp_path, ours):
    write_flame(tmp_path / "flame2020.npz", ours)
    write_embedding(tmp_path / "landmark_embedding.npz", ours)
    jaw = morphable_files.load(tmp_path / "flame2020.npz").expression_basis[..., -3:]
    assert jaw.shape[-1] == 3 and np.abs(jaw[0]).max() < 1e-6, "the joint stays"
    # The file's x axis is ours, so a vertex moves as half of x cross its arm, plus its own correction: entry (1, 2)
    # of the rotation matrix falls by an angle about x.
    arm = ours.mean - ours.mean[0]
    expected = 0.5 * np.cross([1.0, 0.0, 0.0], arm)
    expected[7] += [-0.01 / HEAD, 0.0, 0.0]
    np.testing.assert_allclose(jaw[1:, :, 0], expected[1:], atol=1e-4)


def test_a_vertex_list_serves_any_model(tmp_path, ours):
    write_flame(tmp_path / "flame2020.npz", ours)
    (tmp_path / "marks.txt").write_text(
        "\n".join(str(v) for v in ours.landmark_sets["ibug68"].vertices[:, 0])
    )
    model = morphable_files.load(tmp_path / "flame2020.npz", landmarks=tmp_path / "marks.txt")
    same_space(model, ours, np.arange(len(ours.mean)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("generic_model.pkl", b"\x80\x04.", "is a pickle, which may run code"),
        ("face.obj", b"v 0 0 0", "not a face model's file; known are BFM"),
        ("01_MorphableModel.mat", b"not a matrix", "cannot be read as a MATLAB 5 file"),
        ("model2017-1_bfm_nomouth.h5", b"not HDF5", "cannot be read as HDF5"),
        ("flame.npz", b"not a zip", "cannot be read as .npz"),
    ],
)
def test_files_that_are_no_models_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        morphable_files.load(tmp_path / name)


def test_what_a_file_lacks_is_named(tmp_path, ours):
    with pytest.raises(InputError, match="does not exist"):
        morphable_files.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", v_template=np.zeros((4, 3)))
    with pytest.raises(InputError, match="has no shapedirs: not the layout"):
        morphable_files.load(tmp_path / "other.npz")
    write_flame(tmp_path / "flame.npz", ours)
    with pytest.raises(InputError, match="0 known landmarks, at least 8"):
        morphable_files.load(tmp_path / "flame.npz")
    (tmp_path / "marks.txt").write_text("1 2 3")
    with pytest.raises(InputError, match="3 landmarks, expected 68 vertex numbers below"):
        morphable_files.load(tmp_path / "flame.npz", landmarks=tmp_path / "marks.txt")
    np.save(tmp_path / "landmark_embedding.npy", np.array({"a": 1}, object))
    with pytest.raises(InputError, match="is a pickle"):
        morphable_files.load(tmp_path / "flame.npz", landmarks=tmp_path / "landmark_embedding.npy")
    write_flame(tmp_path / "sparse.npz", ours, J_regressor=np.array({"a": 1}, object))
    with pytest.raises(InputError, match="J_regressor is pickled"):
        morphable_files.load(tmp_path / "sparse.npz")
