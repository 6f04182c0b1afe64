"""The renderer of the synthetic heads: coverage, compositing, occlusion and transparency, exact where they can be."""

import dataclasses

import numpy as np
import pytest

from gphm_jax.data.synthetic import cameras, renderer


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
