"""Reading datasets from disk: order, splits, geometry of resized pictures, and one line for every fault."""

import json
import pathlib

import numpy as np
import pytest
from dataset_fixture import LANDMARKS, NUM_LANDMARKS, write_dataset
from PIL import Image

from gphm_jax.data import images, layout
from gphm_jax.errors import InputError

IMAGE = "000/images/0001/image_2.png"
CAMERA = "000/cameras/0001/camera_2.npz"
PARAMS = "000/params/0001/params.npz"
POINTS = "000/params/0001/lmk_3d.npy"


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    return write_dataset(tmp_path / "data")


def test_indexes_in_natural_order(root):
    dataset = layout.open_dataset(root)
    assert dataset.identities == ("000", "001")
    assert [(frame.row, frame.identity_row, frame.name) for frame in dataset.frames] == [
        (row, row // 3, f"{row % 3:04d}") for row in range(6)
    ]
    frame = dataset.frames[4]
    assert [view.name for view in frame.views] == ["0", "2", "10"]
    assert frame.shows_face.tolist() == [True, True, False]
    assert (dataset.landmark_count, dataset.image_size, dataset.num_images) == (NUM_LANDMARKS, (32, 32), 18)
    assert len(frame.synthesized) == 1 and frame.scale == pytest.approx(1.1)
    np.testing.assert_allclose(frame.facing, [1.0, np.cos(0.7), -1.0], atol=0.1)


def test_an_identity_folder_is_a_dataset(root):
    dataset = layout.open_dataset(root / "001")
    assert dataset.identities == ("001",) and len(dataset.frames) == 3


def test_landmarks_project_onto_their_dots(root):
    dataset = layout.open_dataset(root)
    dark = 0
    for frame in dataset.frames:
        for view in np.flatnonzero(frame.shows_face).tolist():
            image, _ = layout.load_view(dataset, frame, view, size=32)
            pixels = images.project(
                frame.landmarks, frame.world_to_camera[view], layout.view_intrinsics(frame, view, 32)
            )
            x, y = pixels.astype(int).T
            assert (image[y, x] == 0).all()
            dark += len(x)
    assert dark == 6 * 2 * NUM_LANDMARKS


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (40, 64)])
@pytest.mark.parametrize("target", [16, 24, 80])
def test_resized_intrinsics_follow_the_pixels(tmp_path, size, target):
    dataset = layout.open_dataset(write_dataset(tmp_path / "data", identities=1, frames=2, size=size))
    frame = dataset.frames[1]
    for view in range(3):
        image, mask = layout.load_view(dataset, frame, view, size=target)
        assert image.shape == (target, target, 3) and mask.shape == (target, target)
        weight = mask / mask.sum()
        centroid = [(weight.sum(axis) * (np.arange(target) + 0.5)).sum() for axis in (0, 1)]
        intrinsics = layout.view_intrinsics(frame, view, target)
        expected = images.project(frame.translation[None], frame.world_to_camera[view], intrinsics)[0]
        # The disc's own sampling costs a tenth of a stored pixel; pixel centres at 0 would be off by 0.25 and more.
        assert np.abs(np.array(centroid) - expected).max() < 0.12 * max(1.0, target / max(size))


def test_composites_over_white_unless_the_dataset_is_white(root, tmp_path):
    dataset = layout.open_dataset(root)
    image, mask = layout.load_view(dataset, dataset.frames[0], 0, size=32)
    stored = np.asarray(Image.open(root / "000/images/0000/image_0.png"))
    assert 0 < (mask == 0).sum() < mask.size
    assert (image[mask == 0] == 255).all() and (image[mask == 255] == stored[mask == 255]).all()
    (root / "dataset.json").write_text(json.dumps({"background": "white"}))
    white = layout.open_dataset(root)
    np.testing.assert_array_equal(layout.load_view(white, white.frames[0], 0, size=32)[0], stored)


def test_over_white_blends_a_soft_mask():
    image = np.full((1, 3, 3), 100, np.uint8)
    blended = images.over_white(image, np.array([[0, 51, 255]], np.uint8))
    assert blended[0, :, 0].tolist() == [255, 224, 100]  # 0.2 * 100 + 0.8 * 255


def test_alpha_serves_as_mask(root):
    path = root / IMAGE
    mask = np.asarray(Image.open(path.with_name("mask_2.png")))
    Image.fromarray(np.dstack([np.asarray(Image.open(path)), mask])).save(path)
    path.with_name("mask_2.png").unlink()
    dataset = layout.open_dataset(root)
    np.testing.assert_array_equal(layout.load_view(dataset, dataset.frames[1], 1, size=32)[1], mask)


def test_cuts_faces_where_no_view_has_a_face_file(tmp_path):
    dataset = layout.open_dataset(write_dataset(tmp_path / "data", face_files=False))
    frame = dataset.frames[0]
    assert frame.shows_face.tolist() == [True, True, False]
    face = layout.load_face(dataset, frame, 0, size=32)
    full, _ = layout.load_view(dataset, frame, 0, size=32)
    assert (face.max(axis=2) < 100).mean() > 1.5 * (full.max(axis=2) < 100).mean() > 0  # the dots, enlarged
    nonface = layout.load_nonface(dataset, frame, 0, size=32)
    hidden = (nonface == 0).all(axis=2)
    assert 0.05 < hidden.mean() < 0.6
    np.testing.assert_array_equal(nonface[~hidden], full[~hidden])
    dots = images.project(frame.landmarks, frame.world_to_camera[0], frame.intrinsics[0]).astype(int)
    assert hidden[dots[:, 1], dots[:, 0]].all()
    np.testing.assert_array_equal(
        layout.load_nonface(dataset, frame, 2, size=32), layout.load_view(dataset, frame, 2, size=32)[0]
    )


@pytest.mark.parametrize("box", [(-4, -4, 8), (6, 2, 30), (40, 3, 5), (-20, 5, 8), (0, -50, 10)])
def test_crop_boxes_may_leave_the_image(box):
    image = np.random.default_rng(0).integers(0, 200, (12, 10, 3), np.uint8)
    left, top, side = box
    crop = images.crop_box(image, box)
    for row in range(side):
        for column in range(side):
            y, x = top + row, left + column
            inside = 0 <= y < 12 and 0 <= x < 10
            assert (crop[row, column] == (image[y, x] if inside else 255)).all()
    y, x = np.mgrid[:12, :10]
    within = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
    np.testing.assert_array_equal(
        (images.black_out(image, box) == 0).all(axis=2), within | (image == 0).all(axis=2)
    )


def test_poses_and_cameras_are_those_on_disk(root):
    dataset = layout.open_dataset(root)
    for item in layout.select(dataset):
        np.testing.assert_allclose(layout.canonical_landmarks(item.frame), LANDMARKS, atol=1e-6)
    np.testing.assert_allclose(
        layout.mean_canonical_landmarks(layout.select(dataset)), LANDMARKS, atol=1e-6
    )
    rotations = [frame.rotation[0] for frame in dataset.frames]
    np.testing.assert_allclose(rotations, [0.0, 0.05, 0.1] * 2, atol=1e-6)
    np.testing.assert_allclose([frame.scale for frame in dataset.frames], [1.0] * 3 + [1.1] * 3)
    intrinsics = layout.view_intrinsics(dataset.frames[0], 0, 16)
    np.testing.assert_allclose(intrinsics, [[28.8, 0, 8.15], [0, 28.8, 7.9], [0, 0, 1]], rtol=1e-6)


def test_what_was_recorded_is_what_the_camera_says_within_the_picture(tmp_path):
    dataset = layout.open_dataset(write_dataset(tmp_path / "data", identities=1, frames=2, size=(40, 64)))
    frame = dataset.frames[1]
    np.testing.assert_array_equal(frame.recorded, [[0, 0, 64, 40], [1, 0, 64, 38], [0, 0, 64, 40]])
    # Padded by 12 rows above and below, then shrunk to half.
    np.testing.assert_array_equal(layout.view_recorded(frame, 0, 32), [0, 6, 32, 26])
    np.testing.assert_array_equal(layout.view_recorded(frame, 1, 32), [0.5, 6, 32, 25])


def test_a_home_folder_may_be_written_as_a_tilde(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    assert layout.open_dataset("~/data").identities == ("000", "001")


def test_split_follows_dataset_json(tmp_path):
    held = {
        "held_out_views": ["2"],
        "held_out_frames": {"001": ["0002"]},
        "image_size": [32, 32],
        "landmark_count": 5,
    }
    dataset = layout.open_dataset(write_dataset(tmp_path / "data", metadata=held))
    train = layout.select(dataset)
    assert [(item.frame.row, item.views) for item in train] == [(row, (0, 2)) for row in range(5)]
    assert [item.views for item in layout.select(dataset, views="held_out")] == [(1,)] * 5
    unseen = layout.select(dataset, frames="held_out", views="all")
    assert [(item.frame.row, item.views) for item in unseen] == [(5, (0, 1, 2))]
    assert len(layout.select(dataset, frames="all", identities=["001"])) == 3
    with pytest.raises(InputError, match="no identity 'ghost'"):
        layout.select(dataset, identities=["ghost"])
    with pytest.raises(InputError, match="no images with views=train, frames=held_out"):
        layout.select(dataset, frames="held_out", identities=["000"])
    with pytest.raises(InputError, match="no such side"):
        layout.select(dataset, views="test")


def test_held_out_identities_leave_the_default_selection(tmp_path):
    dataset = layout.open_dataset(write_dataset(tmp_path / "data", metadata={"held_out_identities": ["000"]}))
    assert {item.frame.identity for item in layout.select(dataset)} == {"001"}
    assert len(layout.select(dataset, identities=["000"])) == 3


def save_camera(root: pathlib.Path, **changes: np.ndarray) -> None:
    arrays = dict(np.load(root / CAMERA)) | changes
    np.savez(root / CAMERA, **{key: value for key, value in arrays.items() if value is not None})


def remove(relative: str):
    return lambda root: (root / relative).unlink()


def save_pose(root: pathlib.Path, **arrays: np.ndarray) -> None:
    np.savez(root / PARAMS, **arrays)


def shrink(root: pathlib.Path, relative: str) -> None:
    Image.open(root / relative).resize((16, 16)).save(root / relative)


def describe(metadata: object):
    return lambda root: (root / "dataset.json").write_text(json.dumps(metadata))


SQUARE = np.array([[np.nan, 0, 16], [0, 50, 16], [0, 0, 1.0]])
# What is broken, which file the message must name, and what it must say.
FAULTS = {
    "camera missing": (remove(CAMERA), CAMERA, "missing camera"),
    "camera NaN": (lambda root: save_camera(root, intrinsic=SQUARE), CAMERA, "NaN or infinite"),
    "camera singular": (lambda root: save_camera(root, intrinsic=np.zeros((3, 3))), CAMERA, "not invertible"),
    "camera shape": (lambda root: save_camera(root, extrinsic=np.eye(3)), CAMERA, "expected (3, 4)"),
    "camera scaled": (lambda root: save_camera(root, extrinsic=2 * np.eye(4)[:3]), CAMERA, "no rotation"),
    "camera key": (lambda root: save_camera(root, intrinsic=None), CAMERA, "no array 'intrinsic'"),
    "camera box": (lambda root: save_camera(root, recorded=np.array([0, 8, 9, 8])), CAMERA, "recorded is [0.0, 8"),
    "camera box outside": (lambda root: save_camera(root, recorded=[40, 0, 50, 9]), CAMERA, "recorded is [32.0, 0"),
    "camera box short": (lambda root: save_camera(root, recorded=[0, 8, 9]), CAMERA, "recorded is [0, 8, 9]"),
    "camera garbage": (
        lambda root: (root / CAMERA).write_bytes(b"PK\x03\x04 nonsense"),
        CAMERA,
        "cannot read",
    ),
    "camera plain array": (lambda root: (root / POINTS).rename(root / CAMERA), CAMERA, "cannot read"),
    "camera empty": (lambda root: (root / CAMERA).write_bytes(b""), CAMERA, "cannot read"),
    "mask missing": (
        lambda root: (
            Image.open(root / IMAGE).save((root / IMAGE).with_suffix(".jpg")),
            (root / IMAGE).unlink(),
            (root / IMAGE).with_name("mask_2.png").unlink(),
        ),
        "000/images/0001/mask_2.png",
        "missing mask",
    ),
    "mask size": (
        lambda root: shrink(root, "000/images/0001/mask_2.png"),
        "000/images/0001/mask_2.png",
        "is 16x16 but",
    ),
    "image garbage": (lambda root: (root / IMAGE).write_bytes(b"not a picture"), IMAGE, "cannot decode"),
    "image size": (describe({"image_size": 48}), "000/images/0000/image_0.png", "says 48x48"),
    "params missing": (remove(PARAMS), PARAMS, "frame without params"),
    "params shape": (lambda root: save_pose(root, pose=np.zeros(5)), PARAMS, "expected 6"),
    "params NaN": (lambda root: save_pose(root, pose=np.full((1, 6), np.nan)), PARAMS, "not finite"),
    "params scale": (
        lambda root: save_pose(root, pose=np.zeros(6), scale=np.zeros(1)),
        PARAMS,
        "not positive",
    ),
    "params key": (lambda root: save_pose(root, scale=np.ones(1)), PARAMS, "no array 'pose'"),
    "params pickled": (
        lambda root: save_pose(root, pose=np.array([{"a": 1}], dtype=object)),
        PARAMS,
        "cannot read",
    ),
    "landmarks missing": (remove(POINTS), POINTS, "frame without landmarks"),
    "landmarks shape": (lambda root: np.save(root / POINTS, np.zeros((5, 2))), POINTS, "expected (K, 3)"),
    "landmarks count": (lambda root: np.save(root / POINTS, np.zeros((6, 3))), POINTS, "expected (5, 3)"),
    "landmarks NaN": (
        lambda root: np.save(root / POINTS, np.full((5, 3), np.inf)),
        POINTS,
        "NaN or infinite",
    ),
    "landmarks garbage": (lambda root: (root / POINTS).write_bytes(b"\x93NUM"), POINTS, "cannot read"),
    "no frames": (
        lambda root: (root / "002/images").mkdir(parents=True),
        "002/images",
        "identity without frames",
    ),
    "no images folder": (
        lambda root: (root / "002/cameras").mkdir(parents=True),
        "002/images",
        "identity without",
    ),
    "no images": (lambda root: (root / "000/images/0009").mkdir(), "000/images/0009", "frame without images"),
    "json broken": (lambda root: (root / "dataset.json").write_text("{"), "dataset.json", "repair or delete"),
    "json list": (describe([]), "dataset.json", "no JSON object"),
    "json type": (describe({"landmark_count": "five"}), "dataset.json", "landmark_count"),
    "json size": (describe({"image_size": [1, 2, 3]}), "dataset.json", "image_size"),
    "json identity": (describe({"identities": ["000", "ghost"]}), "ghost", "has no folder"),
    "json view": (describe({"held_out_views": ["77"]}), "dataset.json", "holds out view 77"),
    "json frame": (describe({"held_out_frames": ["0077"]}), "dataset.json", "holds out frame 0077"),
    "json identity nameless": (describe({"identities": ["000", {"id": 1}]}), "dataset.json", "without a name"),
    "json frames of one": (describe({"held_out_frames": {"000": 5}}), "dataset.json", "expected a list of names"),
    "json frames text": (describe({"held_out_frames": {"000": "0001"}}), "dataset.json", "expected a list of names"),
    "json person": (describe({"held_out_identities": ["x"]}), "dataset.json", "holds out identity x"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line_naming_the_file(root, fault):
    layout.open_dataset(root)  # sound before it is broken
    damage, file, message = FAULTS[fault]
    damage(root)
    with pytest.raises(InputError) as caught:
        layout.open_dataset(root)
    assert file in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_dataset(tmp_path):
    with pytest.raises(InputError, match="no dataset at .*nowhere"):
        layout.open_dataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no identities in"):
        layout.open_dataset(tmp_path)


def test_an_unreadable_folder_is_named(root, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(pathlib.Path, "iterdir", refuse)  # the tests may run as root, to whom all is permitted
    with pytest.raises(InputError, match=r"cannot read .*data \(Permission denied\)"):
        layout.open_dataset(root)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_truncated_images_fail_when_decoded(tmp_path, suffix):
    root = write_dataset(tmp_path / "data", size=(96, 96), identities=1)
    path = (root / IMAGE).with_suffix(suffix)
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    (root / IMAGE).unlink()
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    dataset = layout.open_dataset(root)  # its header is whole
    with pytest.raises(InputError, match=f"cannot decode image .*{path.name}") as caught:
        layout.load_view(dataset, dataset.frames[1], 1, size=96)
    assert "\n" not in str(caught.value)


def test_png_without_mask_or_alpha_fails_when_decoded(root):
    (root / IMAGE).with_name("mask_2.png").unlink()
    dataset = layout.open_dataset(root)
    with pytest.raises(InputError, match="no mask for .*image_2.png"):
        layout.load_view(dataset, dataset.frames[1], 1, size=32)


def test_other_files_are_ignored(root):
    folder = root / "000/images/0000"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "image_lowres_0.jpg")
    (folder / "notes.txt").write_text("x")
    (root / "assets").mkdir()
    dataset = layout.open_dataset(root)
    assert dataset.identities == ("000", "001") and len(dataset.frames[0].views) == 3
