"""Textured scans to datasets: formats, folder layouts, finding the head, and what cannot be used."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import scan_fixture
import trimesh
from PIL import Image
from scan_fixture import elsewhere, head, write_coloured_ply, write_glb, write_obj, write_textured_ply

from gphm_jax.capture import scan_placing, scan_rendering
from gphm_jax.capture.scan_placing import align, intersect
from gphm_jax.capture.scan_rendering import render_all
from gphm_jax.capture.scans import Similarity, people_in, read_scan
from gphm_jax.capture.settings import ScanSettings
from gphm_jax.data import images, layout
from gphm_jax.data.sampler import BatchOptions, BatchSampler
from gphm_jax.data.synthetic import cameras, renderer
from gphm_jax.errors import InputError, TrainingError

ROOT = pathlib.Path(__file__).parent.parent
ENVIRONMENT = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "kernels")]))
SETTINGS = ScanSettings(size=128, views=8, expression_images=1)
BLENDER = elsewhere(unit=231.0, turn="x", degrees=90, shift=(40.0, 900.0, 1500.0))  # millimetres, z up
CAMERA = elsewhere(
    unit=0.22, turn="x", degrees=180, shift=(0.1, 0.2, 1.1)
)  # metres, y down, z away from the camera
UPSIDE_DOWN = elsewhere(unit=231.0, turn="x", degrees=180, shift=(0, 0, 0))
SLANTED = elsewhere(unit=23.0, turn="y", degrees=50, shift=(5.0, 0.0, 3.0))
WRITERS = {
    "scan.obj": write_obj,
    "scan.glb": write_glb,
    "coloured.ply": write_coloured_ply,
    "scan.ply": write_textured_ply,
}


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = np.mean((first.astype(float) - second.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def from_matrix(matrix: np.ndarray) -> Similarity:
    scale = float(np.linalg.det(matrix[:3, :3]) ** (1 / 3))
    return Similarity(scale=scale, rotation=matrix[:3, :3] / scale, shift=matrix[:3, 3])


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_drawn_like_the_head_itself(name, tmp_path):
    path = WRITERS[name](tmp_path / name, head(), BLENDER)
    view, size = cameras.place(25.0, 8.0, 192), 192
    lit = read_scan(path).placed(BLENDER.inverse(), pixels=1e6)
    image, mask = renderer.render(lit, view.world_to_camera, view.intrinsics, size)
    expected, coverage = scan_fixture.drawn(head(), view, size, light=name == "coloured.ply")
    assert 0.3 < (mask > 127).mean() < 0.8
    assert np.abs(mask.astype(int) - coverage).mean() < 0.05
    # An atlas has less detail than the pictures it is made of.
    assert psnr(image, expected) > (28 if name == "scan.ply" else 40)


def test_a_fine_texture_is_reduced_without_its_unused_part(tmp_path):
    flat = trimesh.Trimesh(
        [[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0.01]], [[0, 1, 2], [0, 2, 3]], process=False
    )
    pixels = np.zeros((512, 512, 3), np.uint8)
    pixels[:, :300] = 200
    uv = np.array([[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]])
    flat.visual = trimesh.visual.TextureVisuals(uv=uv, image=Image.fromarray(pixels))
    (tmp_path / "flat.glb").write_bytes(flat.export(file_type="glb"))
    (part,) = (
        read_scan(tmp_path / "flat.glb")
        .placed(elsewhere(unit=1.0, turn="x", degrees=0, shift=(0, 0, 0)), pixels=20)
        .opaque.parts
    )
    assert part.material.texture.shape[0] < 64
    assert (part.material.texture[..., :3] == 200).all()


def test_rays_intersect_and_points_align():
    rng = np.random.default_rng(0)
    points = 0.3 * rng.normal(size=(30, 3))
    views = [cameras.place(yaw, pitch, 200) for yaw, pitch in ((0, 0), (20, 5), (-20, -5))]
    world = np.stack([view.world_to_camera for view in views])
    intrinsics = np.stack([view.intrinsics for view in views])
    local = np.einsum("vij,kj->vki", world[:, :, :3], points) + world[:, None, :, 3]
    pixels = np.einsum("vij,vkj->vki", intrinsics, local)
    pixels = pixels[..., :2] / pixels[..., 2:]
    pixels[2] += 50  # a look that counts for nothing
    found = intersect(pixels, np.array([1.0, 1.0, 0.0]), world, intrinsics)
    np.testing.assert_allclose(found, points, atol=1e-9)
    step, misfit = align(points, BLENDER(points), np.linspace(0.1, 1, 30))
    assert misfit < 1e-9
    np.testing.assert_allclose(step.scale, BLENDER.scale)
    np.testing.assert_allclose(step.rotation, BLENDER.rotation, atol=1e-12)
    np.testing.assert_allclose(step.inverse()(BLENDER(points)), points, atol=1e-9)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A person with two expressions in two units' axes and a broken scan, and somebody who has nothing but one."""
    root = tmp_path_factory.mktemp("scans")
    write_coloured_ply(root / "in" / "one" / "a.ply", head(), BLENDER)
    write_coloured_ply(root / "in" / "one" / "b.ply", head(jaw=0.6), UPSIDE_DOWN)
    (root / "in" / "one" / "c.ply").write_bytes(b"ply\nformat ascii 1.0\nelement vertex 9\n")
    (root / "in" / "two").mkdir()
    (root / "in" / "two" / "broken.obj").write_text("f 1 2 3\n")
    with pytest.raises(TrainingError, match="1 of 2 failed, listed in"):
        render_all(root / "in", root / "out", SETTINGS, workers=1)
    return root


def test_scans_of_a_person_become_frames_of_an_identity(rendered):
    made = layout.open_dataset(rendered / "out")
    assert made.identities == ("one",) and [frame.name for frame in made.frames] == ["a", "b"]
    assert made.image_size == (128, 128) and made.white_background and made.landmark_count == 68
    quality = json.loads((rendered / "out" / "one" / "quality.json").read_text())
    places = {"a": BLENDER, "b": UPSIDE_DOWN}
    for frame, truth in zip(made.frames, (head(), head(jaw=0.6)), strict=True):
        assert len(frame.views) == 8 and len(frame.synthesized) == 1 and 3 <= frame.shows_face.sum() < 8
        # How long a head is, the face model guesses from the face; where the face is, it sees.
        assert quality["head_length_in_file_units"][frame.name] == pytest.approx(231.0, rel=0.08)
        to_canonical = np.array(quality["file_to_canonical"][frame.name])
        marks = (
            places[frame.name](truth.landmarks.astype(float)) @ to_canonical[:3, :3].T + to_canonical[:3, 3]
        )
        away = np.linalg.norm(frame.landmarks - marks, axis=1)
        assert np.median(away) < 0.02 and away.max() < 0.08  # head lengths
        assert quality["landmarks_off_surface_head_lengths"][frame.name] < 0.02
        there = from_matrix(to_canonical).after(places[frame.name])
        for number in range(8):
            view = cameras.place(*cameras.training_angles(8)[number], 128)
            np.testing.assert_allclose(frame.world_to_camera[number][:3], view.world_to_camera, atol=1e-5)
            expected, coverage = scan_fixture.drawn(truth, view, 128, light=True, place=there)
            mask = images.read_gray(frame.views[number].mask)
            assert 0.1 < (mask > 127).mean() < 0.9 and np.abs(mask.astype(int) - coverage).mean() < 0.3
            assert psnr(images.read_rgb(frame.views[number].image), expected) > 33  # a JPEG
    # The mouth that is open in the second scan is open in its landmarks.
    gaps = [frame.landmarks[62, 1] - frame.landmarks[66, 1] for frame in made.frames]
    assert gaps[1] - gaps[0] > 0.03


def test_what_failed_is_named_and_what_is_finished_stays(rendered, monkeypatch):
    quality = json.loads((rendered / "out" / "one" / "quality.json").read_text())
    (dropped,) = quality["dropped"]
    assert dropped["frame"] == "c" and "c.ply" in dropped["reason"]
    assert "c.ply" in (rendered / "out" / "one" / "quality.html").read_text()
    (failure,) = json.loads((rendered / "out" / "failed.json").read_text())
    assert failure["item"] == "two" and "broken.obj" in failure["reason"] and failure["trace"] is None
    monkeypatch.setattr(scan_rendering, "_fit", None)  # nothing is looked at again
    before = (rendered / "out" / "one" / "images" / "a" / "image_0.jpg").stat().st_mtime_ns
    with pytest.raises(TrainingError, match="1 of 2 failed"):
        render_all(rendered / "in", rendered / "out", SETTINGS, workers=1)
    assert (rendered / "out" / "one" / "images" / "a" / "image_0.jpg").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="is not empty, and not"):
        render_all(rendered / "in", rendered / "in", SETTINGS)
    with pytest.raises(InputError, match="with other settings: remove it"):
        render_all(rendered / "in", rendered / "out", ScanSettings(size=64))


def test_training_reads_it(rendered):
    options = BatchOptions(
        identities_per_batch=1,
        frames_per_identity=2,
        views_per_frame=2,
        image_size=32,
        face_size=16,
        nonface_size=16,
    )
    batch = BatchSampler(layout.open_dataset(rendered / "out"), options).batch(0)
    assert batch.image.shape == (1, 2, 2, 32, 32, 3) and batch.landmarks.shape == (1, 2, 68, 3)
    assert 0.2 < np.asarray(batch.mask).mean() < 0.9
    assert not np.asarray(batch.pose.rotation).any() and not np.asarray(batch.pose.translation).any()


def test_a_slanted_scan_in_another_unit_is_found(tmp_path):
    write_coloured_ply(tmp_path / "head.ply", head(), SLANTED)
    render_all(tmp_path / "head.ply", tmp_path / "out", ScanSettings(size=64, views=1, expression_images=0))
    (frame,) = layout.open_dataset(tmp_path / "out").frames
    assert np.median(np.linalg.norm(frame.landmarks - head().landmarks, axis=1)) < 0.05


def test_views_into_an_open_scan_are_left_out(tmp_path):
    whole = trimesh.load_mesh(write_coloured_ply(tmp_path / "whole.ply", head(), CAMERA), process=False)
    inside_out = whole.faces[(whole.triangles_center[:, 2] < CAMERA.shift[2])][
        :, ::-1
    ]  # the front, and wound wrongly
    mask = trimesh.Trimesh(
        whole.vertices, inside_out, vertex_colors=whole.visual.vertex_colors, process=False
    )
    mask.export(tmp_path / "mask.ply")
    render_all(tmp_path / "mask.ply", tmp_path / "out", ScanSettings(size=64, views=8, expression_images=0))
    (frame,) = layout.open_dataset(tmp_path / "out").frames
    left = {view.name for view in frame.views}
    behind = {str(n) for n, (yaw, _) in enumerate(cameras.training_angles(8)) if abs(yaw) > 100}
    quality = json.loads((tmp_path / "out" / "mask" / "quality.json").read_text())
    assert quality["views"] == {"mask": len(left)}
    assert "0" in left and len(behind) >= 2 and not left & behind
    assert np.median(np.linalg.norm(frame.landmarks - head().landmarks, axis=1)) < 0.05


def touched(root: pathlib.Path, *names: str) -> pathlib.Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_folders_of_nphm(tmp_path):
    files = ("scan.ply", "scan.png", "flame.ply", "registration.ply", "s.npy", "R.npy", "t.npy")
    for scan in ("017/000", "017/010", "099/003"):
        touched(tmp_path, *(f"{scan}/{name}" for name in files))
    found = people_in(tmp_path)
    assert [person.name for person in found] == ["017", "099"]
    assert found[0].scans == (
        ("000", tmp_path / "017/000/scan.ply"),
        ("010", tmp_path / "017/010/scan.ply"),
    )
    (alone,) = people_in(tmp_path / "017")
    assert alone.name == "017" and alone.scans == found[0].scans


def test_folders_of_faceverse(tmp_path):
    for name in ("001_01", "001_02", "002_21"):
        touched(tmp_path, *(f"{name}/{name}{suffix}" for suffix in (".obj", ".mtl", ".jpg")))
    found = people_in(tmp_path)
    assert [(person.name, [frame for frame, _ in person.scans]) for person in found] == [
        ("001", ["01", "02"]),
        ("002", ["21"]),
    ]
    assert found[0].scans[1][1] == tmp_path / "001_02/001_02.obj"


def test_other_folders(tmp_path):
    touched(
        tmp_path,
        "one.obj",
        "one.mtl",
        "two.GLB",
        "three/smile 1.ply",
        "three/smile 10.ply",
        "three/smile 2.ply",
        "notes/readme.txt",
    )
    found = people_in(tmp_path)
    assert [(person.name, [frame for frame, _ in person.scans]) for person in found] == [
        ("one", ["one"]),
        ("two", ["two"]),
        ("three", ["smile_1", "smile_2", "smile_10"]),
    ]


def box(**visual) -> trimesh.Trimesh:
    mesh = trimesh.creation.box()
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False, **visual)


def bare(path):
    box().export(path / "x.ply")
    return path / "x.ply"


def lost_picture(path):
    write_obj(path / "x.obj", head(), CAMERA)
    for picture in path.glob("*.png"):
        picture.unlink()
    return path / "x.obj"


def points_alone(path):
    trimesh.PointCloud(np.eye(3), colors=np.full((3, 4), 255, np.uint8)).export(path / "x.ply")
    return path / "x.ply"


def not_finite(path):
    mesh = box(vertex_colors=np.full((8, 4), 90, np.uint8))
    mesh.vertices[3] = np.nan
    mesh.export(path / "x.ply")
    return path / "x.ply"


def faceless(path):
    mesh = trimesh.creation.icosphere(subdivisions=3)
    mesh.visual.vertex_colors = np.full((len(mesh.vertices), 4), 150, np.uint8)
    mesh.export(path / "x.ply")
    return path / "x.ply"


def corner(index):
    """A triangle whose last corner is vertex `index` of three."""

    def make(path):
        lines = ["ply", "format ascii 1.0", "element vertex 3", *(f"property float {axis}" for axis in "xyz")]
        lines += [f"property uchar {colour}" for colour in ("red", "green", "blue")]
        lines += ["element face 1", "property list uchar int vertex_indices", "end_header"]
        lines += ["0 0 0 9 9 9", "1 0 0 9 9 9", "0 1 1 9 9 9", f"3 0 1 {index}"]
        (path / "x.ply").write_text("\n".join(lines) + "\n")
        return path / "x.ply"

    return make


TEXTURED = b"""mtllib x.mtl
usemtl skin
v 0 0 0
v 1 0 0
v 0 1 1
vt 0 0
vt 1 %s
vt 0 1
f 1/1 2/2 3/3
"""


def textured(content):
    def make(path):
        (path / "x.mtl").write_text("newmtl skin\nmap_Kd x.png\n")
        Image.fromarray(np.full((4, 4, 3), 99, np.uint8)).save(path / "x.png")
        return named("x.obj", content)(path)

    return make


def named(name, content=b""):
    def make(path):
        (path / name).write_bytes(content)
        return path / name

    return make


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (bare, r"x\.ply has no texture that can be read and no vertex colours"),
        (lost_picture, r"x\.obj has no texture that can be read"),
        (points_alone, r"x\.ply has no faces: export the scan as a mesh"),
        (not_finite, r"x\.ply has vertices or texture coordinates that are not finite"),
        (corner(3), r"x\.ply has faces with corners that it does not hold"),
        (corner(-1), r"x\.ply has faces with corners that it does not hold"),
        (textured(TEXTURED % b"nan"), r"x\.obj has vertices or texture coordinates that are not finite"),
        (faceless, r"x\.ply: no face found from any side"),
        (named("x.glb", b"glTF\x02"), r"cannot read .*x\.glb \("),
        (named("x.obj"), r"(cannot read .*x\.obj|x\.obj has no faces)"),
        (named("x.txt"), r"x\.txt is no scan: give a scan \(\.obj"),
        (lambda path: path / "none.obj", r"nothing at .*none\.obj: give"),
        (lambda path: path, r"no scans in .*: give"),
    ],
)
def test_bad_input_is_one_line(make, says, tmp_path, monkeypatch):
    monkeypatch.setattr(scan_placing, "_SEARCH", ((128, False),))
    scan = make(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        render_all(scan, tmp_path / "out", ScanSettings(size=64, views=1))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/*/images"))


def test_the_command_refuses_bad_flags(tmp_path):
    flags = [f"--input={tmp_path}", f"--out={tmp_path / 'out'}", "--views=0"]
    done = subprocess.run(
        [sys.executable, "-m", "gphm_jax.tools.render_scans", *flags],
        capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip() == "error: --views=0: must be between 1 and 400"
