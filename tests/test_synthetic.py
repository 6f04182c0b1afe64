"""Synthetic heads: cameras, strata, motion, light, exact coverage, and the dataset that comes out."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from gphm_jax.data import layout
from gphm_jax.data.synthetic import (
    base,
    cameras,
    expression,
    identity,
    motion,
    person,
    proxies,
    renderer,
    sequence,
    writer,
)  # fmt: skip
from gphm_jax.data.synthetic.dataset import describe, synthesize
from gphm_jax.errors import InputError

SEED = 3
REQUEST = writer.Request(
    out=pathlib.Path("unset"), first_identity=0, identities=2, expressions=2, frames=2, views=2, heldout_views=1,
    expression_images=1, size=64, seed=SEED, capture="multiview",
)  # fmt: skip


def scores(**units: float) -> np.ndarray:
    vector = np.zeros(52, np.float32)
    for name, value in units.items():
        for k, known in enumerate(base.ARKIT):
            if known in (name, name + "Left", name + "Right"):
                vector[k] = value
    return vector


@pytest.fixture(scope="module")
def subject() -> person.Person:
    return person.build(identity.sample(seed=SEED, index=1), detail=0.25)


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


# Cameras


@pytest.mark.parametrize("views", [1, 4, 10, 16, 80])
def test_held_out_cameras_are_15_degrees_from_every_training_camera(views):
    training = cameras.training_angles(views)
    held_out = cameras.held_out_angles(training, 6)
    assert len(training) == views and len(held_out) == 6
    for angles in held_out:
        centre = cameras.place(*angles, 64).centre - cameras.TARGET
        for other in training:
            towards = cameras.place(*other, 64).centre - cameras.TARGET
            cosine = centre @ towards / np.linalg.norm(centre) / np.linalg.norm(towards)
            assert np.degrees(np.arccos(np.clip(cosine, -1, 1))) >= 15.0 - 1e-6
    assert min(abs(yaw) for yaw, _ in held_out) < 30 < max(abs(yaw) for yaw, _ in held_out)


def test_ten_views_go_round_and_pitch_varies():
    angles = cameras.training_angles(10)
    assert sorted(yaw for yaw, _ in angles) == [-130, -90, -60, -30, 0, 30, 60, 90, 130, 180]
    pitches = np.array([pitch for _, pitch in angles])
    assert np.abs(pitches).max() <= 15 and pitches.std() > 3


def test_no_room_for_held_out_cameras_is_an_input_error():
    with pytest.raises(InputError, match="--heldout_views=64"):
        cameras.held_out_angles(cameras.training_angles(80), 64)


def test_camera_looks_at_the_target_with_opencv_axes():
    view = cameras.place(40.0, 10.0, 100)
    rotation = view.world_to_camera[:, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    local = view.world_to_camera @ [*cameras.TARGET, 1.0]
    np.testing.assert_allclose(local, [0, 0, cameras.DISTANCE], atol=1e-9)
    above = view.world_to_camera @ [*(cameras.TARGET + [0, 0.1, 0]), 1.0]
    assert above[1] < 0, "y runs down in the picture"


# People and expressions


def test_any_six_frames_hold_every_class_and_their_units_are_strong():
    need = {"open": "jawOpen", "smile": "mouthSmileLeft", "blink": "eyeBlinkLeft", "surprise": "browInnerUp"}
    for who in range(4):
        for start in range(8):
            kinds = {
                expression.expression_class(seed=SEED, identity=who, frame=start + k): start + k
                for k in range(6)
            }
            assert set(kinds) == set(expression.CLASSES)
            for kind, unit in need.items():
                vector = expression.sample(seed=SEED, identity=who, frame=kinds[kind])
                assert vector.min() >= 0 and vector.max() <= 1
                assert vector[base.ARKIT.index(unit)] >= 0.5, (kind, unit)
    assert not expression.sample(seed=SEED, identity=0, frame=0).any()


def test_six_people_are_balanced_and_person_k_stays_the_same():
    people = [identity.sample(seed=SEED, index=k) for k in range(12)]
    for block in (people[:6], people[6:]):
        assert len({(p.race, p.sex) for p in block}) == 6
        assert sorted(p.age for p in block) == sorted(identity.AGES * 2)
    again = identity.sample(seed=SEED, index=7)
    np.testing.assert_array_equal(again.coefficients, people[7].coefficients)
    assert (again.hair, again.texture_seed) == (people[7].hair, people[7].texture_seed)
    shapes = np.stack([p.coefficients for p in people])
    assert shapes.shape[1] == len(identity.coefficient_names())
    assert np.linalg.norm(shapes[:, None] - shapes[None], axis=-1)[np.triu_indices(12, 1)].min() > 0.5


def test_canonical_space(subject):
    body = subject.canonical(subject.neutral[:13380])
    np.testing.assert_allclose(body[list(base.EAR_VERTICES)].mean(0), 0.0, atol=1e-5)
    chin = person.landmarks(subject, scores(), motion.still(subject.pivot))[8]
    assert body[:, 1].max() - chin[1] == pytest.approx(1.0, abs=0.02)
    nose = person.landmarks(subject, scores(), motion.still(subject.pivot))[30]
    assert nose[2] > 0.3 and abs(nose[0]) < 0.05


def test_landmarks_follow_lids_and_lips(subject):
    still = motion.still(subject.pivot)

    def gap(points: np.ndarray, upper: list[int], lower: list[int]) -> float:
        return float(np.linalg.norm(points[upper] - points[lower], axis=1).mean())

    neutral = person.landmarks(subject, scores(), still)
    blink = person.landmarks(subject, scores(eyeBlink=1.0), still)
    opened = person.landmarks(subject, scores(jawOpen=0.9), still)
    lids = ([37, 38, 43, 44], [41, 40, 47, 46])
    assert gap(blink, *lids) < 0.5 * gap(neutral, *lids)
    lips = ([61, 62, 63], [67, 66, 65])
    assert gap(opened, *lips) > 0.08 > 0.03 > gap(neutral, *lips)
    left, right = neutral[36:42].mean(0), neutral[42:48].mean(0)
    assert left[0] < 0 < right[0], "the person's right eye comes first: the picture's left"


# Motion


def test_skull_is_rigid_and_trunk_stays(subject):
    mesh = base.load()
    moved = motion.compose(
        subject.pivot,
        yaw=0.35,
        pitch=0.2,
        roll=-0.1,
        nod=np.array([0.01, 0.0, 0.02]),
        shrug=np.zeros(2),
        sway=np.zeros(3),
    )
    points = subject.canonical(subject.neutral)
    world = motion.pose_vertices(points, mesh.head_weight, moved, pivot=subject.pivot, chest=subject.chest)
    rigid = points @ motion.rotation_matrix(moved.rotation).T + moved.translation
    head, trunk = mesh.head_weight == 1, mesh.head_weight == 0
    assert head[base.load().faces["body"][:, :, 0]].sum() > 4000 and trunk.sum() > 1000
    np.testing.assert_allclose(world[head], rigid[head], atol=1e-5)
    np.testing.assert_allclose(world[trunk], points[trunk], atol=1e-6)
    marks = person.landmarks(subject, scores(), moved)
    np.testing.assert_allclose(marks, rigid[person.LANDMARKS], atol=1e-5)
    assert (mesh.head_weight[person.LANDMARKS] == 1).all()
    quads = mesh.faces["body"][:, :, 0]
    quads = quads[mesh.vertices[quads][:, :, 1].min(1) > base.LOWEST_KEPT]
    before = np.linalg.norm(points[quads[:, 0]] - points[quads[:, 1]], axis=1)
    after = np.linalg.norm(world[quads[:, 0]] - world[quads[:, 1]], axis=1)
    assert (after / np.maximum(before, 1e-3)).max() < 1.8, "the neck's skin stretches but does not tear"


def test_shoulders_move_in_head_space(subject):
    mesh = base.load()
    moved = motion.sample(subject.pivot, seed=SEED, identity=1, frame=1)
    points = subject.canonical(subject.neutral)
    world = motion.pose_vertices(points, mesh.head_weight, moved, pivot=subject.pivot, chest=subject.chest)
    local = (world - moved.translation) @ motion.rotation_matrix(moved.rotation)
    trunk = (mesh.head_weight == 0) & (mesh.vertices[:, 1] > 4.5)
    assert np.linalg.norm(local - points, axis=1)[trunk].mean() > 0.02
    assert np.linalg.norm(world - points, axis=1)[trunk].mean() < 0.1


# Rendering


def sphere(
    radius: float, centre: tuple[float, float, float] = (0, 0, 0), rows: int = 48
) -> tuple[np.ndarray, np.ndarray]:
    theta, phi = np.meshgrid(
        np.linspace(0, np.pi, rows + 1), np.linspace(0, 2 * np.pi, 2 * rows + 1), indexing="ij"
    )
    points = np.stack([np.sin(theta) * np.sin(phi), np.cos(theta), np.sin(theta) * np.cos(phi)], -1).reshape(
        -1, 3
    )
    a = (np.arange(rows)[:, None] * (2 * rows + 1) + np.arange(2 * rows)).ravel()
    b, c, d = a + 2 * rows + 1, a + 2 * rows + 2, a + 1
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)]).astype(np.int32)
    return (points * radius + np.array(centre)).astype(np.float32), faces


def part(vertices: np.ndarray, faces: np.ndarray, colour: int, **options) -> renderer.Part:
    texture = np.full((2, 2, 4), colour, np.uint8)
    return renderer.Part(
        vertices=vertices, faces=faces, uv_faces=np.zeros_like(faces), uvs=np.full((1, 2), 0.5, np.float32),
        material=renderer.Material(texture=texture, **options), casters=faces,
    )  # fmt: skip


def test_sphere_coverage_outward_faces_and_exact_compositing():
    vertices, faces = sphere(0.4, tuple(cameras.TARGET))
    lights = renderer.make_lights(np.random.default_rng(0), quality=0.5)
    view = cameras.place(25.0, 5.0, 128)
    solid = renderer.light([part(vertices, faces, 0, two_sided=False)], lights, shadow_size=128)
    image, mask = renderer.render(solid, view.world_to_camera, view.intrinsics, 128)
    # The silhouette of a sphere at distance d has angular radius asin(r / d).
    focal = view.intrinsics[0, 0]
    radius = focal * np.tan(np.arcsin(0.4 / cameras.DISTANCE))
    assert mask.astype(float).sum() / 255 == pytest.approx(np.pi * radius**2, rel=0.01)
    # A black object over white: the image is exactly one minus coverage.
    assert np.abs(255 - image[..., 0].astype(int) - mask).max() <= 1
    assert 0 < ((mask > 0) & (mask < 255)).sum() < 600


def test_an_occluder_darkens_what_lies_under_it():
    lights = renderer.make_lights(np.random.default_rng(0), quality=0.5)
    vertices, faces = sphere(0.15)
    alone = renderer.light([part(vertices, faces, 200)], lights, shadow_size=192)
    roof, roof_faces = sphere(0.3, (0.0, 0.55, 0.3))
    covered = renderer.light(
        [part(vertices, faces, 200), part(roof, roof_faces, 200)], lights, shadow_size=192
    )
    top = vertices[:, 1] > 0.1
    open_light, shaded = (
        alone.opaque.irradiance[: len(vertices)][top],
        covered.opaque.irradiance[: len(vertices)][top],
    )
    assert open_light.mean() > 0.5 and shaded.mean() < 0.75 * open_light.mean()


def test_transparent_part_blends_by_its_alpha():
    back, back_faces = sphere(0.3, tuple(cameras.TARGET))
    front = np.array(
        [[-1, -1, 0.5], [1, -1, 0.5], [1, 1, 0.5], [-1, 1, 0.5]], np.float32
    ) + cameras.TARGET.astype(np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    veil = part(front, faces, 0, transparent=True)
    veil = dataclasses.replace(
        veil,
        casters=None,
        material=dataclasses.replace(veil.material, texture=np.array([[[0, 0, 0, 128]]], np.uint8)),
    )
    lights = renderer.make_lights(np.random.default_rng(0), quality=0.5)
    view = cameras.place(0.0, 0.0, 64)
    plain, plain_mask = renderer.render(
        renderer.light([part(back, back_faces, 200)], lights, shadow_size=64),
        view.world_to_camera,
        view.intrinsics,
        64,
    )
    both, mask = renderer.render(
        renderer.light([part(back, back_faces, 200), veil], lights, shadow_size=64),
        view.world_to_camera,
        view.intrinsics,
        64,
    )
    assert plain_mask[32, 32] == 255 and plain_mask[2, 2] == 0 and plain[2, 2, 0] == 255
    np.testing.assert_allclose(both[32, 32], plain[32, 32] * (1 - 128 / 255), atol=2)
    np.testing.assert_allclose(both[2, 2], 255 * (1 - 128 / 255), atol=2)
    assert mask[32, 32] == 255 and abs(int(mask[2, 2]) - 128) <= 1


def test_mouth_is_dark_inside_and_face_is_lit(subject):
    still = motion.still(subject.pivot)
    lit = renderer.light(
        person.frame_parts(subject, scores(jawOpen=1.0), still),
        renderer.thin(subject.lights),
        shadow_size=256,
    )
    view = cameras.place(0.0, 0.0, 256)
    image, mask = renderer.render(lit, view.world_to_camera, view.intrinsics, 256)
    points = person.landmarks(subject, scores(jawOpen=1.0), still)
    local = points @ view.world_to_camera[:, :3].T + view.world_to_camera[:, 3]
    pixels = (local[:, :2] / local[:, 2:] * view.intrinsics[0, 0] + 128).astype(int)
    assert (mask[pixels[17:, 1], pixels[17:, 0]] == 255).all()
    upper, lower = pixels[62], pixels[66]
    mouth = image[upper[1] + 2 : lower[1] - 1, upper[0] - 4 : upper[0] + 5].astype(float).mean(-1)
    cheek = (
        image[pixels[33, 1] - 6 : pixels[33, 1], pixels[31, 0] - 14 : pixels[31, 0] - 8]
        .astype(float)
        .mean(-1)
    )
    assert mouth.shape[0] > 5 and mouth.min() < 0.4 * cheek.mean()
    share = mask[:, :].astype(float).mean() / 255
    assert 0.25 < share < 0.7, "head and shoulders fill the picture"


def test_plain_heads_without_the_optional_package(monkeypatch):
    monkeypatch.setattr(proxies, "available", lambda: False)
    bare = person.build(identity.sample(seed=SEED, index=2), detail=0.25)
    parts = person.frame_parts(bare, scores(mouthSmile=1.0), motion.still(bare.pivot))
    assert not any(p.material.transparent for p in parts) and len(parts) >= 6
    lit = renderer.light(parts, renderer.thin(bare.lights), shadow_size=128)
    view = cameras.place(0.0, 0.0, 64)
    image, mask = renderer.render(lit, view.world_to_camera, view.intrinsics, 64)
    assert mask[32, 32] == 255 and image[mask == 255].std() > 10
    described = describe(REQUEST)
    assert "plain" in str(described["heads"]) and len(described["sources"]) == 1


# The dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("heads") / "one"
    assert synthesize(dataclasses.replace(REQUEST, out=out), 1) == 12
    return out


def test_dataset_reads_back(dataset):
    read = layout.open_dataset(dataset)
    assert read.identities == ("0000", "0001") and len(read.frames) == 4 and read.landmark_count == 68
    assert read.held_out_views == {"2"} and read.white_background
    frame = read.frames[3]
    assert frame.shows_face[0] and not frame.shows_face[1], "view 1 sees the back of the head"
    image, mask = layout.load_view(read, frame, 0, size=64)
    assert (image[mask == 0] >= 250).mean() > 0.98 and (mask == 255).mean() > 0.2
    face = cv2.imread(str(dataset / "0001/images/0001/face_0.jpg"))
    assert face.shape == (32, 32, 3)
    params = np.load(dataset / "0001/params/0001/params.npz")
    assert (
        params["pose"].shape == (6,)
        and params["exp_coeff"].shape == (52,)
        and float(params["scale"][0]) == 1.0
    )
    black = cv2.imread(str(dataset / "0001/images/0001/nonface_0.jpg")).max(-1) < 12
    picture = cv2.imread(str(dataset / "0001/images/0001/image_0.jpg")).max(-1) < 12
    assert 0.04 < (black & ~picture).mean() < 0.5
    assert cv2.imread(str(dataset / "0001/expressions/0001/0.jpg")).shape == (32, 32, 3)
    assert not [p for p in dataset.iterdir() if p.name.startswith(".")]


def test_two_workers_other_count_and_resuming_give_the_same_bytes(dataset, tmp_path):
    request = dataclasses.replace(REQUEST, out=tmp_path / "two", identities=1, first_identity=1)
    assert synthesize(request, 2) == 6
    expected = {k: v for k, v in tree(dataset).items() if k.startswith("0001/")}
    found = {k: v for k, v in tree(request.out).items() if k.startswith("0001/")}
    assert len(expected) > 20 and found == expected
    kept = request.out / "0001/images/0001/image_0.jpg"
    stamp = kept.stat().st_mtime_ns
    for path in (request.out / "0001/images/0000").iterdir():
        path.unlink()
    (request.out / "0001/images/0000").rmdir()
    (request.out / ".frame-stale").mkdir()
    assert synthesize(request, 1) == 3
    assert {k: v for k, v in tree(request.out).items() if k.startswith("0001/")} == expected
    assert kept.stat().st_mtime_ns == stamp, "a finished frame is not touched"
    assert synthesize(request, 1) == 0
    with pytest.raises(InputError, match="another size|another image_size"):
        synthesize(dataclasses.replace(request, size=32), 1)


def test_expression_images_are_of_other_people():
    for index in (0, 5, 11):
        for frame in range(4):
            others = writer._expression_people(index, frame, 4, SEED)
            assert len(set(others)) == 4 and index not in others


def test_monocular_capture(tmp_path):
    request = dataclasses.replace(
        REQUEST,
        out=tmp_path / "mono",
        identities=1,
        expressions=2,
        frames=4,
        expression_images=0,
        size=32,
        capture="monocular",
    )
    assert synthesize(request, 1) == 4 + 4
    read = layout.open_dataset(request.out)
    assert read.held_out_frames == {("0000", "0003")}
    assert [len(frame.views) for frame in read.frames] == [1, 1, 1, 5]
    described = json.loads((request.out / "dataset.json").read_text())
    assert described["held_out_views"] == ["1", "2", "3", "4"]
    last = read.frames[3]
    centres = [-w[:3, :3].T @ w[:3, 3] - cameras.TARGET for w in last.world_to_camera]
    yaws = np.degrees([np.arctan2(c[0], c[2]) for c in centres])
    np.testing.assert_allclose(yaws[1:] - yaws[0], [35, -35, 60, -60], atol=0.01)
    sweep = [sequence.monocular_angle(k, 40)[0] for k in range(40)]
    assert max(sweep) == pytest.approx(40, abs=1) and min(sweep) == pytest.approx(-40, abs=1)


@pytest.mark.parametrize(
    ("flag", "says"),
    [("--size=3", "--size=3"), ("--out=/proc/nowhere/x", "cannot write"), ("--views=ten", "views")],
)
def test_bad_flags_end_with_status_2_and_one_line(flag, says, tmp_path):
    command = [sys.executable, "-m", "gphm_jax.tools.synthesize", f"--out={tmp_path / 'x'}", flag]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and says in done.stderr
