"""Synthetic heads: cameras, strata, people, motion, and how a lit head looks."""

from __future__ import annotations

import numpy as np
import pytest

from gphm_jax.data.synthetic import (
    base,
    cameras,
    expression,
    identity,
    motion,
    person,
    proxies,
    renderer,
)  # fmt: skip
from gphm_jax.errors import InputError

SEED = 3


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
