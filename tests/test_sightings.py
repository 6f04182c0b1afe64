"""The first pass over a recording: whose face, why not, and going on after an interruption."""

import pathlib

import numpy as np
import pytest

from gphm_jax.capture import sightings
from gphm_jax.capture.landmarks import Detection
from gphm_jax.capture.recording import Calibration, Picture, Recording, Unreadable
from gphm_jax.capture.sightings import find_faces


def face(x, size=40.0, score=0.9):
    corners = np.array([(x, 10), (x + size, 10), (x, 10 + size)], np.float32)
    return Detection(points=corners, score=score, expression=np.full(52, x / 100, np.float32))


class Landmarker:
    """Gives what the picture's first pixel asks for; stops where told."""

    scheme = "three"

    def __init__(self, faces, stop=None):
        self.faces, self.stop, self.asked = faces, stop, []

    def detect(self, image):
        number = int(image[0, 0, 0])
        if number == self.stop:
            raise KeyboardInterrupt
        self.asked.append(number)
        return sorted(self.faces[number], key=lambda seen: -seen.extent)

    def close(self):
        pass


def recording(count, calibrated=False, broken=()):
    def read():
        for n in range(count):
            if n in broken:
                yield Unreadable(frame=f"{n:04d}", view="0", reason=f"{n}.jpg is truncated")
                continue
            camera = Calibration(world_to_camera=n * np.eye(4), intrinsics=np.eye(3))
            image = np.full((20, 30, 3), n, np.uint8)
            yield Picture(frame=f"{n:04d}", view="0", image=image, calibration=camera if calibrated else None)

    names = tuple(f"{n:04d}" for n in range(count))
    return Recording(name="a", source=pathlib.Path("a.mp4"), frames=names, views=("0",), read=read)


def same(first, second):
    assert [vars(item).keys() for item in first] == [vars(item).keys() for item in second]
    for one, other in zip(first, second, strict=True):
        for key, value in vars(one).items():
            if key == "calibration" and value is not None:
                np.testing.assert_array_equal(value.world_to_camera, other.calibration.world_to_camera)
            else:
                np.testing.assert_equal(getattr(other, key), value)


def test_reasons_name_what_is_wrong(tmp_path):
    faces = [[face(5)], [], [face(5, score=0.05)], [face(5, size=8)], None]
    found = find_faces(recording(5, broken=(4,)), Landmarker(faces), tmp_path / "s.npz", lambda: None)
    assert found[0].reason == "" and found[0].points is not None and found[0].size == (20, 30)
    assert found[1].reason == "no face found" and found[1].points is None
    assert "doubtful face found (score 0.05" in found[2].reason
    assert "8 pixels large" in found[3].reason
    assert found[4].reason == "4.jpg is truncated" and found[4].size == (0, 0)


def test_the_person_is_followed_past_a_larger_face(tmp_path):
    faces = [[face(10)], [face(12), face(200, 90)], [face(14), face(190, 95)], [face(180, 99), face(16)]]
    found = find_faces(recording(4), Landmarker(faces), tmp_path / "s.npz", lambda: None)
    assert [item.points[0, 0] for item in found] == [10, 12, 14, 16]
    assert [item.others for item in found] == [0, 1, 1, 1]
    (alone,) = find_faces(recording(1), Landmarker([faces[1]]), tmp_path / "t.npz", lambda: None)
    assert alone.points[0, 0] == 200  # the largest, where nobody was seen before


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_run_cut_short_goes_on(tmp_path, monkeypatch, calibrated):
    monkeypatch.setattr(sightings, "_SAVE_EVERY", 2)
    faces = [[face(10)], [], [face(12), face(200, 90)], [face(199, 90), face(14)], [face(16)]]
    whole = find_faces(
        recording(5, calibrated, (4,)), Landmarker(faces), tmp_path / "whole.npz", lambda: None
    )
    kept, ticks = tmp_path / "cut.npz", []
    with pytest.raises(KeyboardInterrupt):
        find_faces(recording(5, calibrated, (4,)), Landmarker(faces, stop=3), kept, lambda: None)
    second = Landmarker(faces)
    resumed = find_faces(recording(5, calibrated, (4,)), second, kept, lambda: ticks.append(1))
    assert second.asked == [2, 3] and len(ticks) == 5
    same(whole, resumed)


def test_sightings_of_another_landmarker_or_damaged_are_not_used(tmp_path):
    kept = tmp_path / "s.npz"
    find_faces(recording(2), Landmarker([[face(5)], [face(6)]]), kept, lambda: None)
    other = Landmarker([[face(5)], [face(6)]])
    other.scheme = "four"
    find_faces(recording(2), other, kept, lambda: None)
    assert other.asked == [0, 1]
    kept.write_bytes(kept.read_bytes()[:200])
    again = Landmarker([[face(5)], [face(6)]])
    again.scheme = "four"
    find_faces(recording(2), again, kept, lambda: None)
    assert again.asked == [0, 1]
