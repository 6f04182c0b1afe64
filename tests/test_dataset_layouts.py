"""The field's datasets, written in their own layouts from one native dataset, read as the native form does."""

import json

import cv2
import numpy as np
import pytest
from dataset_fixture import write_dataset
from PIL import Image
from video_fixture import write_frames

from gphm_jax.capture.color_correction import MONOMIALS, correct_polynomial
from gphm_jax.capture.recording import Picture, Unreadable
from gphm_jax.capture.shots import resized_intrinsics
from gphm_jax.capture.sources import open_recordings, recording_paths
from gphm_jax.data import images
from gphm_jax.data.layout import open_dataset
from gphm_jax.errors import InputError

POINT = np.array(
    [0.1, 0.25, 0.3], np.float32
)  # off every camera's axis and centre, so that a swapped sign shows
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
SERIALS = {"0": "222200037", "2": "222200046", "10": "221501007"}
SIZE = (32, 48)
QUARTER = (802, 550)  # of NeRSemble's pictures


def native(root, **options):
    """{(frame, view): (image, mask, world_to_camera, intrinsics)} of a small dataset of one identity."""
    dataset = open_dataset(write_dataset(root, identities=1, synthesized=0, face_files=False, **options))
    return {
        (frame.name, view.name): (
            images.read_rgb(view.image),
            images.read_gray(view.mask),
            frame.world_to_camera[row].astype(np.float64),
            frame.intrinsics[row].astype(np.float64),
        )
        for frame in dataset.frames
        for row, view in enumerate(frame.views)
    }


def pixel(world_to_camera, intrinsics, point=POINT):
    local = world_to_camera[:3, :3] @ point + world_to_camera[:3, 3]
    return (intrinsics @ local)[:2] / local[2]


def assert_same(recording, expected, *, masks, point=POINT):
    """A recording holds exactly these pictures, masks and cameras, all views of a frame before the next."""
    items = list(recording.read())
    assert [(item.frame, item.view) for item in items] == [
        (frame, view) for frame in recording.frames for view in recording.views
    ]
    assert {(item.frame, item.view) for item in items} == set(expected)
    for item in items:
        image, mask, world_to_camera, intrinsics = expected[item.frame, item.view]
        np.testing.assert_array_equal(item.image, image)
        if masks:
            np.testing.assert_array_equal(item.mask, mask)
        else:
            assert item.mask is None
        if world_to_camera is None:
            assert item.calibration is None
            continue
        found = pixel(item.calibration.world_to_camera, item.calibration.intrinsics)
        assert np.abs(found - pixel(world_to_camera, intrinsics, point)).max() < 1e-3


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


# NeRSemble


def write_nersemble(folder, pictures, *, sequence="EMO-1-shout+laugh"):
    """One participant; the real calibration is of pictures four times as big."""
    for view in sorted({view for _, view in pictures}):
        frames = [image for (_, other), (image, *_) in sorted(pictures.items()) if other == view]
        path = folder / "sequences" / sequence / "images" / f"cam_{SERIALS[view]}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_frames(path, frames, 24)
    cameras = {view: camera for (_, view), (_, _, *camera) in pictures.items()}
    calibration = {
        "world_2_cam": {SERIALS[view]: pose.tolist() for view, (pose, _) in cameras.items()},
        "intrinsics": resized_intrinsics(next(iter(cameras.values()))[1], QUARTER, (3208, 2200)).tolist(),
    }
    write_json(folder / "calibration" / "camera_params.json", calibration)
    return calibration


def as_nersemble(pictures, sequence="EMO-1-shout+laugh"):
    return {
        (f"{sequence}_{frame}", SERIALS[view]): (image, None, *camera)
        for (frame, view), (image, _, *camera) in pictures.items()
    }


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    return native(tmp_path_factory.mktemp("native"), frames=3, size=QUARTER)


def test_nersemble(tmp_path, filmed):
    for participant in ("018", "074"):
        write_nersemble(tmp_path / participant, filmed)
    write_nersemble(tmp_path / "074", filmed, sequence="HAIR")
    save(tmp_path / "074/sequences/BACKGROUND/image_222200037.jpg", np.zeros((8, 8, 3), np.uint8))
    first, second = open_recordings(tmp_path)
    assert (first.name, second.name) == ("018", "074")
    assert first.views == tuple(sorted(SERIALS.values()))
    assert_same(first, as_nersemble(filmed), masks=False)
    assert_same(second, as_nersemble(filmed) | as_nersemble(filmed, "HAIR"), masks=False)
    assert recording_paths(tmp_path) == (tmp_path / "018", tmp_path / "074")
    (chosen,) = open_recordings(tmp_path, participants=("074",), sequences=("HAIR",), views=("222200046",))
    expected = {key: value for key, value in as_nersemble(filmed, "HAIR").items() if key[1] == "222200046"}
    assert_same(chosen, expected, masks=False)
    for option, words in (
        ({"participants": ("999",)}, "participant '999'.*018, 074"),
        ({"sequences": ("EXP",)}, "sequence 'EXP'.*EMO-1"),
        ({"views": ("1",)}, "camera '1'.*221501007"),
    ):
        with pytest.raises(InputError, match=words):
            open_recordings(tmp_path, **option)


def test_nersemble_scaled(tmp_path, filmed):
    write_nersemble(tmp_path, filmed)
    (recording,) = open_recordings(tmp_path, max_side=275)
    for item in recording.read():
        assert item.image.shape == (401, 275, 3)
        view = next(view for view, serial in SERIALS.items() if serial == item.view)
        _, _, world_to_camera, intrinsics = filmed["0000", view]
        found = pixel(item.calibration.world_to_camera, item.calibration.intrinsics)
        assert np.abs(2.0 * found - pixel(world_to_camera, intrinsics)).max() < 1e-3


def test_nersemble_colours(tmp_path, filmed):
    write_nersemble(tmp_path, filmed)
    generator = np.random.default_rng(0)
    matrices = {serial: generator.normal(0.0, 0.1, (3, 10)) for serial in SERIALS.values()}
    for matrix in matrices.values():
        matrix[:, :3] += 0.8 * np.eye(3)
    write_json(
        tmp_path / "calibration" / "color_calibration.json",
        {key: value.tolist() for key, value in matrices.items()},
    )
    (recording,) = open_recordings(tmp_path)
    expected = as_nersemble(filmed)
    for item in recording.read():
        value = expected[item.frame, item.view][0] / 255.0
        linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
        r, g, b = np.moveaxis(linear, -1, 0)
        terms = np.stack([r, g, b, r * g, r * b, g * b, r * r, g * g, b * b, np.ones_like(r)], axis=-1)
        linear = np.clip(terms @ matrices[item.view].T, 0.0, 1.0)
        value = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        assert np.abs(255.0 * value - item.image).max() < 0.56  # rounding, and the table's steps


def test_nersemble_colours_of_version_1(tmp_path, filmed):
    write_nersemble(tmp_path, filmed)
    matrix = np.array([[0.9, 0.1, 0.0, 0.01], [0.0, 1.0, 0.1, -0.02], [0.05, 0.0, 0.8, 0.03]])
    folder = tmp_path / "annotations" / "EMO-1-shout+laugh" / "color_correction"
    folder.mkdir(parents=True)
    np.save(folder / "222200037.npy", matrix)
    (recording,) = open_recordings(tmp_path)
    expected = as_nersemble(filmed)
    for item in recording.read():
        image = expected[item.frame, item.view][0]
        if item.view == "222200037":
            image = np.clip(image / 255.0 @ matrix[:, :3] + matrix[:, 3], 0.0, 1.0) * 255.0
        assert np.abs(item.image - image.astype(float)).max() < 0.51


def test_every_set_of_monomials_has_its_number_of_terms():
    image = np.random.default_rng(0).integers(0, 256, (150, 3, 3), dtype=np.uint8)
    for count, names in MONOMIALS.items():
        assert len(names.split()) == count == len({"".join(sorted(name)) for name in names.split()})
        matrix = np.eye(3, count)  # the colours themselves
        np.testing.assert_array_equal(correct_polynomial(image, matrix), image)


def test_a_nersemble_camera_that_filmed_less(tmp_path, filmed):
    write_nersemble(tmp_path, filmed)
    short = tmp_path / "sequences" / "EMO-1-shout+laugh" / "images" / "cam_221501007.mp4"
    write_frames(short, [filmed["0000", "10"][0]], 24)
    (recording,) = open_recordings(tmp_path)
    lost = [item for item in recording.read() if isinstance(item, Unreadable)]
    assert [(item.frame[-4:], item.view) for item in lost] == [("0001", "221501007"), ("0002", "221501007")]
    assert all(str(short) in item.reason for item in lost)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value.pop("intrinsics"), "camera_params.json has no intrinsics for camera 221501007"),
        (lambda value: value.update(intrinsics=[[1, 2]]), "no intrinsics for camera 221501007"),
        (
            lambda value: value.update(intrinsics={"221501007": np.eye(3).tolist()}),
            "no intrinsics for camera 222200037",
        ),
        (lambda value: value["world_2_cam"].pop("222200046"), "no world_2_cam for camera 222200046"),
        (
            lambda value: value["world_2_cam"].update({"222200046": "?"}),
            "no world_2_cam for camera 222200046",
        ),
        (lambda value: value.update(height="tall"), "height and width"),
    ],
)
def test_a_calibration_with_gaps(tmp_path, filmed, change, words):
    calibration = write_nersemble(tmp_path, filmed)
    change(calibration)
    write_json(tmp_path / "calibration" / "camera_params.json", calibration)
    with pytest.raises(InputError, match=words) as caught:
        open_recordings(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_nersemble_s_other_faults(tmp_path, filmed):
    write_nersemble(tmp_path, filmed)
    folder = tmp_path / "sequences" / "EMO-1-shout+laugh" / "images"
    write_json(
        tmp_path / "calibration" / "color_calibration.json", {serial: [[1]] for serial in SERIALS.values()}
    )
    with pytest.raises(InputError, match=r"color_calibration.json has shape \(1, 1\)"):
        open_recordings(tmp_path)
    write_json(tmp_path / "calibration" / "color_calibration.json", {})
    with pytest.raises(InputError, match="color_calibration.json has no camera"):
        open_recordings(tmp_path)
    (tmp_path / "calibration" / "color_calibration.json").unlink()
    write_frames(folder / "cam_222200037.mp4", [np.zeros((64, 64, 3), np.uint8)] * 3, 24)
    (recording,) = open_recordings(tmp_path, views=("222200037",))
    reasons = [item.reason for item in recording.read() if isinstance(item, Unreadable)]
    assert len(reasons) == 3 and "64x64 but its intrinsics are for 2200x3208" in reasons[0]
    (folder / "cam_222200037.mp4").write_text("x")
    with pytest.raises(InputError, match="cam_222200037.mp4 is no video"):
        open_recordings(tmp_path)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no videos in"):
        open_recordings(tmp_path)


# VHAP and nerfstudio


def lens(intrinsics, size, *, bottom_up=False):
    center = size[0] - intrinsics[1, 2] if bottom_up else intrinsics[1, 2]
    return {
        "fl_x": intrinsics[0, 0],
        "fl_y": intrinsics[1, 1],
        "cx": intrinsics[0, 2],
        "cy": center,
        "h": size[0],
        "w": size[1],
    }


def write_vhap(folder, pictures):
    """VHAP's export: OpenGL cameras, cy from the bottom; returns the frames of transforms.json."""
    frames = []
    for (frame, view), (image, mask, world_to_camera, intrinsics) in pictures.items():
        name = f"{int(frame):05d}_{int(view):02d}.png"
        save(folder / "images" / name, image)
        save(folder / "fg_masks" / name, mask)
        frames.append(
            {
                "timestep_index": int(frame),
                "timestep_id": frame,
                "camera_index": int(view),
                "camera_id": SERIALS[view],
                **lens(intrinsics, image.shape[:2], bottom_up=True),
                "transform_matrix": (np.linalg.inv(world_to_camera) @ FLIP).tolist(),
                "file_path": f"images/{name}",
                "fg_mask_path": f"fg_masks/{name}",
                "flame_param_path": f"flame_param/{int(frame):05d}.npz",
            }
        )
    shared = {key: frames[-1][key] for key in ("cx", "cy", "fl_x", "fl_y", "h", "w")}
    write_json(folder / "transforms.json", {"frames": frames, **shared, "timestep_indices": [0, 1, 2]})
    moved = [{**frame, "transform_matrix": np.eye(4).tolist()} for frame in frames]
    write_json(folder / "transforms_backup.json", {"frames": moved})  # other worlds: not to be read
    return frames


def test_vhap(tmp_path):
    pictures = native(tmp_path / "native", frames=3, size=SIZE)
    write_vhap(tmp_path / "export", pictures)
    (recording,) = open_recordings(tmp_path / "export")
    assert recording.name == "export" and recording.views == ("0", "2", "10") and recording.moving
    assert_same(recording, pictures, masks=True)
    (by_file,) = open_recordings(tmp_path / "export" / "transforms.json", views=("2",), max_frames=2)
    kept = {key: value for key, value in pictures.items() if key[1] == "2" and key[0] != "0001"}
    assert_same(by_file, kept, masks=True)


def test_vhap_s_joined_sequences(tmp_path):
    pictures = native(tmp_path / "native", frames=3, size=SIZE)
    frames = write_vhap(tmp_path / "one", pictures)
    for frame in frames:
        for key in ("file_path", "fg_mask_path"):
            frame[key] = f"../one/{frame[key]}"
    for split, kept in (
        ("train", [frame for frame in frames if frame["timestep_index"] < 2 and frame["camera_index"] != 10]),
        ("val", [frame for frame in frames if frame["timestep_index"] < 2 and frame["camera_index"] == 10]),
        ("test", [frame for frame in frames if frame["timestep_index"] == 2]),
    ):
        write_json(tmp_path / "union" / f"transforms_{split}.json", {"frames": kept})
    (recording,) = open_recordings(tmp_path / "union")
    assert_same(recording, pictures, masks=True)


def nerf_frame(path, world_to_camera, **more):
    return {"file_path": path, "transform_matrix": (np.linalg.inv(world_to_camera) @ FLIP).tolist(), **more}


def test_nerfstudio_scene_that_stands_still(tmp_path):
    pictures = native(tmp_path / "native", frames=1, size=SIZE)
    frames, expected = [], {}
    for (_, view), (image, mask, world_to_camera, intrinsics) in pictures.items():
        save(tmp_path / f"images/frame_{int(view):05d}.png", image)
        save(tmp_path / f"masks/frame_{int(view):05d}.png", mask)
        more = {"mask_path": f"masks/frame_{int(view):05d}.png"}
        frames.append(nerf_frame(f"images/frame_{int(view):05d}.png", world_to_camera, **more))
        expected["0000", f"frame_{int(view):05d}"] = (image, mask, world_to_camera, intrinsics)
    shared = {
        "camera_model": "OPENCV",
        **dict.fromkeys(("k1", "k2", "p1", "p2"), 0.0),
        **lens(intrinsics, SIZE),
    }
    write_json(tmp_path / "transforms.json", {**shared, "frames": frames})
    (recording,) = open_recordings(tmp_path)
    assert recording.frames == ("0000",) and not recording.moving
    assert_same(recording, expected, masks=True)


def test_nerf_scene_that_moves_in_blender_s_layout(tmp_path):
    pictures = native(tmp_path / "native", frames=3, views=("0",), size=SIZE)
    frames, expected = [], {}
    for number, (image, mask, world_to_camera, intrinsics) in enumerate(pictures.values()):
        save(tmp_path / f"train/r_{number}.png", np.dstack([image, mask]))
        frames.append(nerf_frame(f"./train/r_{number}", world_to_camera, time=number / 2))
        middle = intrinsics.copy()
        middle[:2, 2] = 0.5 * SIZE[1], 0.5 * SIZE[0]
        expected[f"{number:04d}", "0"] = (image, mask, world_to_camera, middle)
    angle = 2.0 * np.arctan(0.5 * SIZE[1] / intrinsics[0, 0])
    write_json(tmp_path / "transforms_train.json", {"camera_angle_x": angle, "frames": frames})
    (recording,) = open_recordings(tmp_path)
    assert recording.moving
    assert_same(recording, expected, masks=True)


def test_pictures_smaller_than_their_intrinsics(tmp_path):
    pictures = native(tmp_path / "native", frames=1, views=("0",), size=SIZE)
    image, _, world_to_camera, intrinsics = pictures["0000", "0"]
    save(tmp_path / "a.png", image)
    big = resized_intrinsics(intrinsics, SIZE, (96, 144))
    write_json(
        tmp_path / "transforms.json",
        {"frames": [nerf_frame("a.png", world_to_camera, **lens(big, (96, 144)))]},
    )
    (recording,) = open_recordings(tmp_path)
    assert_same(recording, {("0000", "a"): pictures["0000", "0"]}, masks=False)
    (scaled,) = open_recordings(tmp_path, max_side=16)
    (item,) = scaled.read()
    assert item.image.shape == (16, 24, 3)
    found = pixel(item.calibration.world_to_camera, item.calibration.intrinsics)
    assert np.abs(2.0 * found - pixel(world_to_camera, intrinsics)).max() < 1e-3


def test_distorted_pictures_become_pinhole_pictures(tmp_path):
    intrinsics = np.array([[90.0, 0.0, 50.5], [0.0, 90.0, 40.5], [0.0, 0.0, 1.0]])
    coefficients = (-0.3, 0.1, 0.01, -0.01)
    direction = np.array([[[0.35, 0.25, 1.0]]])
    half = np.zeros((3, 3))
    half[:2, 2] = 0.5
    bent = cv2.projectPoints(direction, np.zeros(3), np.zeros(3), intrinsics - half, np.array(coefficients))[
        0
    ].ravel()
    y, x = np.mgrid[0:80, 0:100]
    blob = np.exp(-((x - bent[0]) ** 2 + (y - bent[1]) ** 2) / 8.0)
    save(tmp_path / "a.png", np.repeat(np.rint(255 * blob).astype(np.uint8)[..., None], 3, axis=-1))
    frame = nerf_frame("a.png", np.eye(4), **lens(intrinsics, (80, 100)))
    write_json(
        tmp_path / "transforms.json",
        dict(zip(("k1", "k2", "p1", "p2"), coefficients, strict=True), frames=[frame]),
    )
    (item,) = open_recordings(tmp_path)[0].read()
    weight = item.image[..., 0].astype(float)
    found = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum() + 0.5
    expected = pixel(np.eye(4), item.calibration.intrinsics, direction.ravel())
    assert np.abs(bent + 0.5 - expected).max() > 1.5  # the distortion is seen
    assert np.abs(found - expected).max() < 0.3


def transforms(tmp_path, **changes):
    """A file of one good frame with changes; its picture is `a.png`."""
    save(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    frame = {**nerf_frame("a.png", np.eye(4)), **lens(np.diag([9.0, 9.0, 1.0]), (8, 8)), **changes}
    write_json(
        tmp_path / "transforms.json",
        {"frames": [{key: value for key, value in frame.items() if value is not None}]},
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fl_x": None}, "a.png has no intrinsics"),
        ({"fl_x": -1.0}, "not positive"),
        ({"fl_x": "far"}, "fl_x of a.png is 'far'"),
        ({"transform_matrix": None}, "no 4x4 transform_matrix"),
        ({"transform_matrix": [[1, 2], [3]]}, "no 4x4 transform_matrix"),
        ({"transform_matrix": (2 * np.eye(4)).tolist()}, "no rotation and translation"),
        ({"transform_matrix": np.diag([1.0, 1.0, -1.0, 1.0]).tolist()}, "no rotation and translation"),
        ({"camera_model": "OPENCV_FISHEYE"}, "undistort the pictures"),
        ({"file_path": None}, "without file_path"),
        ({"timestep_index": 0}, "no camera_index"),
    ],
)
def test_a_camera_file_at_fault(tmp_path, changes, words):
    transforms(tmp_path, **changes)
    with pytest.raises(InputError, match=words) as caught:
        open_recordings(tmp_path)
    assert str(tmp_path / "transforms.json") in str(caught.value)


def test_other_faults_of_camera_files(tmp_path):
    path = tmp_path / "transforms.json"
    for text, words in (
        ("{", "cannot read"),
        ("[]", "no JSON object"),
        ("{}", 'no list "frames"'),
        ('{"frames": []}', "no frames"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            open_recordings(tmp_path)
    transforms(tmp_path, h=8, w=16)
    (item,) = open_recordings(tmp_path)[0].read()
    assert isinstance(item, Unreadable) and "8x8 but its intrinsics are for 16x8" in item.reason
    transforms(tmp_path, file_path="gone.png")
    (item,) = open_recordings(tmp_path)[0].read()
    assert isinstance(item, Unreadable) and "missing picture" in item.reason
    transforms(tmp_path, fg_mask_path="mask.png")
    save(tmp_path / "mask.png", np.zeros((4, 4), np.uint8))
    (item,) = open_recordings(tmp_path)[0].read()
    assert isinstance(item, Unreadable) and "mask.png differs from a.png in size" in item.reason
    twice = [
        {
            **nerf_frame(name, np.eye(4)),
            **lens(np.diag([9.0, 9.0, 1.0]), (8, 8)),
            "timestep_index": 0,
            "camera_index": 0,
        }
        for name in ("a.png", "b.png")
    ]
    write_json(path, {"frames": twice})
    with pytest.raises(InputError, match="a.png and .*b.png are both frame 0000 of view 0"):
        open_recordings(tmp_path)


# INSTA


def write_insta(folder, pictures, *, alpha):
    """A person whose head stands still while the camera moves; returns the point in that world by frame."""
    frames, points = [], {}
    intrinsics = next(iter(pictures.values()))[3]
    for number, (image, mask, world_to_camera, _) in enumerate(pictures.values()):
        world = np.eye(4)
        world[:3, :3] = cv2.Rodrigues(np.array([0.1 * number, -0.2, 0.3]))[0]
        world[:3, 3] = [0.1, 0.2 * number, -0.3]
        name = f"{number + 1:05d}"
        cut = np.dstack([image, mask])
        save(folder / "images" / f"{name}.png", cut if alpha else image)
        save(folder / "matted" / f"{name}.png", cut)
        save(folder / "seg_mask" / f"{name}.png", np.zeros_like(image))
        frames.append(
            {
                "transform_matrix": (world @ np.linalg.inv(world_to_camera)).tolist(),  # OpenCV axes
                "file_path": f"images/{name}.png",
                "mesh_path": f"meshes/{name}.obj",
                "exp_path": f"flame/exp/{name}.txt",
                "depth_path": f"depth/{name}.png",
                "seg_mask_path": f"seg_mask/{name}.png",
            }
        )
        points[name] = (world @ [*POINT, 1.0])[:3]
    shared = {key: float(value) for key, value in lens(intrinsics, SIZE).items()} | {
        "integer_depth_scale": 0.001
    }
    frames = frames[::-1]  # written in no order
    for split, kept in (("", frames), ("_train", frames[1:]), ("_test", frames[:1]), ("_val", frames[:2])):
        write_json(folder / f"transforms{split}.json", {**shared, "frames": kept})
    return points


@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_insta(tmp_path, alpha, whole):
    pictures = native(tmp_path / "native", frames=3, views=("0",), size=SIZE)
    points = write_insta(tmp_path / "person", pictures, alpha=alpha)
    if not whole:
        (tmp_path / "person" / "transforms.json").unlink()
    (recording,) = open_recordings(tmp_path / "person")
    assert recording.name == "person" and recording.moving and recording.views == ("0",)
    assert recording.frames == ("00001", "00002", "00003")
    for item, (image, mask, world_to_camera, intrinsics) in zip(
        recording.read(), pictures.values(), strict=True
    ):
        np.testing.assert_array_equal(item.image, image)
        np.testing.assert_array_equal(item.mask, mask)
        found = pixel(item.calibration.world_to_camera, item.calibration.intrinsics, points[item.frame])
        assert np.abs(found - pixel(world_to_camera, intrinsics)).max() < 1e-3


# VFHQ


def test_vfhq(tmp_path):
    pictures = native(tmp_path / "native", frames=12, views=("0",), size=SIZE)
    frames = [image for image, *_ in pictures.values()]
    names = ("Clip+-91nXXjrVo+P0+C0+F1537-1825", "Clip+_0tf2n3rlJU+P2+C1+F100-180")
    for name in names:
        for number, image in enumerate(frames):
            save(tmp_path / "clips" / name / f"{number + 1:08d}.png", image)
    write_frames(tmp_path / "clips" / "Clip+abc+P0+C0+F1-13.mp4", frames, 25)
    recordings = open_recordings(tmp_path / "clips")
    assert [item.name for item in recordings] == [*names, "Clip+abc+P0+C0+F1-13"]
    for recording, first in zip(recordings, (1, 1, 0), strict=True):
        width = 8 if first else 4
        expected = {
            (f"{n + first:0{width}d}", "0"): (image, None, None, None) for n, image in enumerate(frames)
        }
        assert recording.moving
        assert_same(recording, expected, masks=False)
    (single,) = open_recordings(tmp_path / "clips" / names[1], max_frames=3)
    assert single.name == names[1] and len(single.frames) == 3 and single.frames[-1] == "00000012"
    assert all(isinstance(item, Picture) for item in single.read())
    assert len(recording_paths(tmp_path / "clips")) == 3


def test_a_prepared_dataset_needs_no_reading(tmp_path):
    write_dataset(tmp_path, identities=1, frames=1, synthesized=0, face_files=False)
    with pytest.raises(InputError, match="prepared already"):
        open_recordings(tmp_path / "000")
