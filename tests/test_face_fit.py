"""The fit of a face to landmarks: exact ones, wrong ones, missing ones, several cameras, and a detector's own."""

from __future__ import annotations

import dataclasses
import functools

import cv2
import numpy as np
import pytest

from gphm_jax import face_fit, morphable
from gphm_jax.capture.landmarks import open_landmarker
from gphm_jax.data.synthetic import expression, identity, motion, person, renderer
from gphm_jax.errors import InputError
from gphm_jax.face_fit import FitOptions, Observations
from gphm_jax.face_fit_setup import _growth as growth_of
from gphm_jax.morphable_space import similarity

SHARP = FitOptions(mark_deviation=1e-3)  # exact points: priors must not show
FRAMES, SIZE, FOCAL = 16, (480, 640), 700.0


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A face that turns in front of one or two cameras, and its landmarks."""

    seen: Observations
    rotation: np.ndarray  # [f 3 3], world
    landmarks: np.ndarray  # [f 68 3], world
    identity: np.ndarray
    scale: float


def rotations(vectors: np.ndarray) -> np.ndarray:
    return np.stack([cv2.Rodrigues(vector.astype(np.float64))[0] for vector in vectors])


def angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Degrees between rotations."""
    cosine = (np.einsum("fij,fij->f", first, second) - 1) / 2
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


@functools.cache
def scene(scheme: str = "ibug68", *, frames: int = FRAMES, turn: float = 0.5) -> Scene:
    """Exact points of the embedded model in front of one camera at the origin."""
    model, rng = morphable.embedded(), np.random.default_rng(3)
    who = rng.normal(size=model.identity_basis.shape[-1]).astype(np.float32)
    # Of ordinary size: pictures cannot tell a large face from a near one.
    growth = growth_of(model.landmark_part("ibug68")).astype(np.float32)
    who -= growth * (growth @ who) / (growth @ growth)
    time = np.linspace(0.0, 1.0, frames)[:, None]
    units = np.array([1.0, 0.5, 0.8]) * np.clip(np.sin(2 * np.pi * (time + np.array([0.0, 0.3, 0.6]))), 0, 1)
    face = np.zeros((frames, 52), np.float32)
    face[
        :, [model.expression_names.index(name) for name in ("jawOpen", "eyeBlinkLeft", "mouthSmileRight")]
    ] = units
    vectors = np.concatenate(
        [0.15 * np.sin(5 * time), turn * np.sin(3 * time - 1.0), 0.1 * np.cos(4 * time)], 1
    )
    rotation = np.diag([1.0, -1.0, -1.0]) @ rotations(vectors)
    move = np.concatenate([0.2 * np.sin(3 * time), 0.1 * np.cos(2 * time), 4.0 + 0.2 * np.sin(4 * time)], 1)
    people = np.repeat(who[None], frames, 0)

    def world(name: str) -> np.ndarray:
        return np.asarray(model.landmarks(name, people, face)) @ np.swapaxes(rotation, 1, 2) + move[:, None]

    points = world(scheme)
    pixels = FOCAL * points[..., :2] / points[..., 2:] + np.array(SIZE[::-1]) / 2
    return Scene(
        seen=Observations(
            points=pixels[:, None].astype(np.float32),
            weights=np.ones((frames, 1, points.shape[1]), np.float32),
            sizes=np.array([SIZE]),
            scheme=scheme,
            moving=False,  # so that nothing but the points counts
        ),
        rotation=rotation,
        landmarks=world("ibug68"),
        identity=who,
        scale=1.0,
    )


def fit(seen: Observations, options: FitOptions | None = None) -> face_fit.FaceFit:
    return face_fit.fit_face(morphable.embedded(), seen, options)


def misplaced(found: face_fit.FaceFit, truth: Scene) -> float:
    """Median distance of landmarks in head lengths, after one similarity for the whole clip."""
    points = found.landmarks.astype(np.float64).reshape(-1, 3)
    scale, rotation, move = similarity(points, truth.landmarks.reshape(-1, 3))
    return float(
        np.median(np.linalg.norm(scale * points @ rotation.T + move - truth.landmarks.reshape(-1, 3), axis=1))
    )


def test_exact_points_give_pose_face_and_focal_length():
    truth = scene()
    found = fit(truth.seen, SHARP)
    assert angles(rotations(found.rotation), truth.rotation).max() < 0.1
    assert found.intrinsics[0, 0, 0] == pytest.approx(FOCAL, rel=0.01)
    assert found.scale == 1.0, "one camera cannot tell size from distance"
    assert misplaced(found, truth) < 0.005
    assert np.median(found.reprojection) < 0.1
    assert np.corrcoef(found.identity[:5], truth.identity[:5])[0, 1] > 0.8
    jaw = found.expression[:, morphable.embedded().expression_names.index("jawOpen")]
    assert jaw.argmax() in (3, 4, 5) and 0.7 < jaw.max() < 1.2
    np.testing.assert_array_equal(found.intrinsics[0, :2, 2], [320.0, 240.0])


def test_reported_numbers_are_those_of_the_reported_camera_and_pose():
    """x_world = scale R x + t, and the pinhole camera in `intrinsics`."""
    truth, model = scene(), morphable.embedded()
    found = fit(truth.seen, SHARP)
    people = np.repeat(found.identity[None], FRAMES, 0)
    shape = np.asarray(model.landmarks("ibug68", people, found.expression))
    world = found.scale * shape @ np.swapaxes(rotations(found.rotation), 1, 2) + found.translation[:, None]
    np.testing.assert_allclose(world, found.landmarks, atol=1e-4)
    pixels = world @ found.intrinsics[0].T
    distance = np.linalg.norm(pixels[..., :2] / pixels[..., 2:] - truth.seen.points[:, 0], axis=-1)
    np.testing.assert_allclose(distance, found.reprojection[:, 0], atol=0.02)


def test_a_fifth_of_the_points_wrong():
    truth, rng = scene(), np.random.default_rng(0)
    points = truth.seen.points.copy()
    wrong = rng.random(points.shape[:-1]) < 0.2
    points[wrong] += rng.normal(0, 60, (wrong.sum(), 2)).astype(np.float32)
    found = fit(dataclasses.replace(truth.seen, points=points), SHARP)
    assert angles(rotations(found.rotation), truth.rotation).max() < 0.5
    assert misplaced(found, truth) < 0.005
    assert np.median(found.reprojection[~wrong]) < 0.5 < 20 < np.median(found.reprojection[wrong])


def test_missing_frames_lie_between_their_neighbours():
    truth = scene()
    weights = truth.seen.weights.copy()
    weights[7:9] = 0.0
    points = np.where(weights[..., None] > 0, truth.seen.points, 0.0).astype(np.float32)
    found = fit(dataclasses.replace(truth.seen, weights=weights, points=points, moving=True), SHARP)
    turned = angles(rotations(found.rotation), truth.rotation)
    assert turned[[6, 9]].max() < 0.1 and turned[7:9].max() < 1.0
    assert misplaced(found, truth) < 0.01
    step = np.linalg.norm(np.diff(found.landmarks.mean(1), axis=0), axis=-1)
    assert step[6:9].max() < 2 * np.median(step)  # no leap where nothing was seen


def test_a_known_camera_is_kept():
    truth = scene()
    intrinsics = np.array([[FOCAL, 0.0, 320.0], [0.0, FOCAL, 240.0], [0.0, 0.0, 1.0]])[None]
    found = fit(dataclasses.replace(truth.seen, intrinsics=intrinsics), SHARP)
    np.testing.assert_array_equal(found.intrinsics, intrinsics)
    assert angles(rotations(found.rotation), truth.rotation).max() < 0.1


def test_photos_in_any_order_give_the_same_face():
    truth = scene()
    order = np.random.default_rng(1).permutation(FRAMES)
    shuffled = dataclasses.replace(truth.seen, points=truth.seen.points[order], moving=False)
    found = fit(shuffled, SHARP)
    assert angles(rotations(found.rotation), truth.rotation[order]).max() < 0.1
    assert np.median(found.reprojection) < 0.1


def test_one_photo_does_not_run_away():
    truth = scene()
    seen = dataclasses.replace(
        truth.seen, points=truth.seen.points[:1], weights=truth.seen.weights[:1], moving=False
    )
    found = fit(seen)
    assert 0.5 < found.intrinsics[0, 0, 0] / FOCAL < 2.0
    assert angles(rotations(found.rotation), truth.rotation[:1]).max() < 6.0
    assert np.median(found.reprojection) < 2.0 and np.abs(found.identity).max() < 3.0


def test_two_calibrated_views_tell_the_scale():
    """A head 0.22 m long between cameras in metres: scale and place in the world come out."""
    truth, head = scene(), 0.22
    turn = cv2.Rodrigues(np.array([0.0, 0.5, 0.0]))[0]
    cameras = np.tile(np.eye(4), (2, 1, 1))
    cameras[1, :3, :3] = turn
    cameras[1, :3, 3] = head * (np.array([0.0, 0.0, 4.0]) - turn @ np.array([0.0, 0.0, 4.0]))
    model = morphable.embedded()
    intrinsics = np.tile(np.array([[FOCAL, 0, 320.0], [0, FOCAL, 240.0], [0, 0, 1.0]]), (2, 1, 1))
    world = head * truth.landmarks
    pixels = []
    for camera in cameras:
        local = world @ camera[:3, :3].T + camera[:3, 3]
        pixels.append(FOCAL * local[..., :2] / local[..., 2:] + np.array([320.0, 240.0]))
    seen = Observations(
        points=np.stack(pixels, 1).astype(np.float32),
        weights=np.ones((FRAMES, 2, 68), np.float32),
        sizes=np.array([SIZE, SIZE]),
        scheme="ibug68",
        intrinsics=intrinsics,
        world_to_camera=cameras,
        moving=False,
    )
    found = face_fit.fit_face(model, seen, SHARP)
    assert found.scale == pytest.approx(head, rel=0.08)  # a large face on a small head looks the same
    assert angles(rotations(found.rotation), truth.rotation).max() < 0.3
    assert np.abs(found.landmarks - world).max() < 0.01 * head


def test_nothing_seen_is_an_input_error():
    truth = scene()
    with pytest.raises(InputError, match="no frame shows enough landmarks of a face"):
        fit(dataclasses.replace(truth.seen, weights=0 * truth.seen.weights))


@functools.cache
def clip(
    frames: int, size: int, *, index: int = 2, yaw: float = 25.0
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """A rendered person who talks and turns to both sides: pictures, rotations and landmarks in the camera."""
    seed = 41
    subject = person.build(identity.sample(seed=seed, index=index), detail=0.5)
    keys = [expression.sample(seed=seed, identity=index, frame=k) for k in (0, 1, 2, 3)]
    focal, distance = 1.2 * size, 2.4
    camera = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, -0.05], [0.0, 0.0, -1.0, distance]])
    intrinsics = np.array([[focal, 0.0, size / 2], [0.0, focal, size / 2], [0.0, 0.0, 1.0]])
    pictures, turns, marks = [], [], []
    for k in range(frames):
        phase = 3.0 * k / frames
        first, share = int(phase), phase % 1.0
        scores = ((1 - share) * keys[first] + share * keys[first + 1]).astype(np.float32)
        moved = motion.compose(
            subject.pivot, yaw=np.radians(yaw) * np.sin(2 * np.pi * k / frames), pitch=0.12 * np.sin(4.0 * k / frames),
            roll=0.05, nod=np.zeros(3), shrug=np.zeros(2), sway=np.zeros(3),
        )  # fmt: skip
        lit = renderer.light(
            person.frame_parts(subject, scores, moved), renderer.thin(subject.lights, 4), shadow_size=192
        )
        pictures.append(renderer.render(lit, camera, intrinsics, size)[0])
        turns.append(camera[:, :3] @ motion.rotation_matrix(moved.rotation))
        marks.append(person.landmarks(subject, scores, moved) @ camera[:, :3].T + camera[:, 3])
    return pictures, np.stack(turns), np.stack(marks)


def filmed() -> tuple[list[np.ndarray], Scene]:
    """A clip, and what is true of it; its observations are the true iBUG points."""
    pictures, rotation, landmarks = clip(28, 320)
    points = 1.2 * 320 * landmarks[..., :2] / landmarks[..., 2:] + 160
    seen = Observations(
        points=points[:, None].astype(np.float32),
        weights=np.ones((len(points), 1, 68), np.float32),
        sizes=np.array([pictures[0].shape[:2]]),
        scheme="ibug68",
    )
    return pictures, Scene(seen=seen, rotation=rotation, landmarks=landmarks, identity=np.zeros(0), scale=1.0)


def reached(seen: Observations, truth: Scene) -> dict[str, float]:
    """Medians over a clip."""
    found = fit(seen)
    return {
        "pose_degrees": float(np.median(angles(rotations(found.rotation), truth.rotation))),
        "landmarks_head_lengths": misplaced(found, truth),
        "focal_over_true": float(found.intrinsics[0, 0, 0]) / (1.2 * 320),
        "reprojection_pixels_at_512": float(np.median(found.reprojection)) * 512 / 320,
    }


def test_reach_on_a_rendered_video(record_property):
    """Pose within 1.5 degrees and landmarks within 1 % of a head length, of a person never seen, by true points."""
    _, truth = filmed()
    figures = reached(truth.seen, truth)
    for name, value in figures.items():
        record_property(name, round(value, 4))
    assert figures["pose_degrees"] <= 1.5 and figures["landmarks_head_lengths"] <= 0.01, figures
    assert 0.8 < figures["focal_over_true"] < 1.25, figures


def test_a_rendered_video_with_a_real_detector(record_property):
    """The detector's own errors on rendered people double the error and more (WORKSPACE, Open)."""
    pictures, truth = filmed()
    with open_landmarker("mediapipe") as landmarker:
        found = [landmarker.detect(picture)[:1] for picture in pictures]
    assert all(found), "a face in every picture"
    points = np.stack([face[0].points for face in found])[:, None].astype(np.float32)
    seen = dataclasses.replace(
        truth.seen, points=points, weights=np.ones(points.shape[:-1], np.float32), scheme="mediapipe478"
    )
    figures = reached(seen, truth)
    for name, value in figures.items():
        record_property(name, round(value, 4))
    assert figures["pose_degrees"] <= 3.5 and figures["landmarks_head_lengths"] <= 0.025, figures
