"""Training and evaluation batches: determinism, coverage, choice of faces, sharding, cache, prefetching."""

import collections
import dataclasses
import itertools
import pathlib
import threading

import jax
import numpy as np
import pytest
from dataset_fixture import NUM_LANDMARKS, write_dataset

from gphm_jax.data import layout
from gphm_jax.data.layout import Dataset
from gphm_jax.data.sampler import (
    BatchOptions,
    BatchSampler,
    evaluation_batches,
    evaluation_plans,
    pixel_source,
    prefetch,
)
from gphm_jax.errors import InputError
from gphm_jax.types import Batch

SMALL = BatchOptions(
    identities_per_batch=2,
    frames_per_identity=2,
    views_per_frame=2,
    image_size=24,
    face_size=16,
    nonface_size=12,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return layout.open_dataset(write_dataset(tmp_path_factory.mktemp("sampler") / "data", synthesized=2))


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Dataset:
    held = {"held_out_views": ["2"], "held_out_frames": ["0002"]}
    return layout.open_dataset(write_dataset(tmp_path_factory.mktemp("split") / "data", metadata=held))


def cells(sampler: BatchSampler, steps: range) -> list:
    return [plan for step in steps for row in sampler.plan(step) for plan in row]


def assert_same(first: Batch, second: Batch) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_shapes_and_dtypes(dataset):
    batch = BatchSampler(dataset, SMALL).batch(0)
    lead = (2, 2, 2)
    assert batch.identity.shape == (2,) and batch.frame.shape == (2, 2)
    assert batch.camera.world_to_camera.shape == (*lead, 4, 4) and batch.camera.intrinsics.shape == (
        *lead,
        3,
        3,
    )
    assert batch.image.shape == (*lead, 24, 24, 3) and batch.mask.shape == (*lead, 24, 24)
    assert batch.pose.rotation.shape == batch.pose.translation.shape == (2, 2, 3)
    assert batch.pose.scale.shape == (2, 2)
    assert batch.landmarks.shape == (2, 2, NUM_LANDMARKS, 3)
    assert batch.face_image.shape == (2, 2, 16, 16, 3) and batch.nonface_image.shape == (2, 2, 12, 12, 3)
    assert batch.identity.dtype == batch.frame.dtype == np.int32
    floats = jax.tree.leaves(dataclasses.replace(batch, identity=None, frame=None))
    assert all(leaf.dtype == np.float32 for leaf in floats)
    assert batch.image.min() >= 0.0 and batch.image.max() == 1.0


def test_batch_holds_what_the_plan_says(dataset):
    sampler = BatchSampler(dataset, dataclasses.replace(SMALL, synthesized_probability=0.5), seed=3)
    synthesized = 0
    for step in range(4):
        plan, batch = sampler.plan(step), sampler.batch(step)
        for i, f in itertools.product(range(2), range(2)):
            cell = plan[i][f]
            frame = cell.frame
            assert (batch.identity[i], batch.frame[i, f]) == (frame.identity_row, frame.row)
            np.testing.assert_array_equal(batch.landmarks[i, f], frame.landmarks)
            np.testing.assert_array_equal(batch.pose.rotation[i, f], frame.rotation)
            for v, view in enumerate(cell.views):
                image, mask = layout.load_view(dataset, frame, view, size=24)
                np.testing.assert_allclose(batch.image[i, f, v], image / 255.0, atol=1e-6)
                np.testing.assert_allclose(batch.mask[i, f, v], mask / 255.0, atol=1e-6)
                np.testing.assert_array_equal(
                    batch.camera.world_to_camera[i, f, v], frame.world_to_camera[view]
                )
                np.testing.assert_array_equal(
                    batch.camera.intrinsics[i, f, v], layout.view_intrinsics(frame, view, 24)
                )
            if cell.synthesized is None:
                face = layout.load_face(dataset, frame, cell.face_view, size=16)
            else:
                face = layout.load_synthesized(frame, cell.synthesized, size=16)
                synthesized += 1
            np.testing.assert_allclose(batch.face_image[i, f], face / 255.0, atol=1e-6)
            nonface = layout.load_nonface(dataset, frame, cell.nonface_view, size=12)
            np.testing.assert_allclose(batch.nonface_image[i, f], nonface / 255.0, atol=1e-6)
    assert 0 < synthesized < 16


def test_deterministic_in_seed_and_step(dataset):
    first, second = BatchSampler(dataset, SMALL, seed=7), BatchSampler(dataset, SMALL, seed=7)
    for step in (11, 0, 5):  # any order, and without the steps between
        assert_same(first.batch(step), second.batch(step))
    other = BatchSampler(dataset, SMALL, seed=8)
    orders = [
        [[plan.frame.row for plan in cells(s, range(n, n + 1))] for n in range(12)] for s in (first, other)
    ]
    assert orders[0] != orders[1]
    assert len({tuple(order) for order in orders[0]}) > 3  # steps differ from each other


@pytest.mark.parametrize(
    ("identities", "frames", "views"), [(2, 2, 2), (1, 1, 1), (2, 3, 3), (1, 2, 1), (4, 2, 4)]
)
def test_covers_everything_evenly(dataset, identities, frames, views):
    options = dataclasses.replace(
        SMALL, identities_per_batch=identities, frames_per_identity=frames, views_per_frame=views
    )
    sampler = BatchSampler(dataset, options, seed=1)
    pictures = 2 * 3 * 3
    period = pictures * identities * frames * views  # a multiple of every stream's own period
    counts = collections.Counter(
        (plan.frame.row, view) for plan in cells(sampler, range(period)) for view in plan.views
    )
    assert len(counts) == pictures and set(counts.values()) == {(identities * frames * views) ** 2}


def test_one_pass_shows_every_picture_once(dataset):
    options = dataclasses.replace(SMALL, identities_per_batch=2, frames_per_identity=3, views_per_frame=3)
    shown = [
        (plan.frame.row, view)
        for plan in cells(BatchSampler(dataset, options), range(1))
        for view in plan.views
    ]
    assert len(shown) == len(set(shown)) == 18
    single = dataclasses.replace(SMALL, identities_per_batch=1, frames_per_identity=1, views_per_frame=1)
    shown = [(plan.frame.row, plan.views) for plan in cells(BatchSampler(dataset, single), range(18))]
    assert len(set(shown)) == 18


def test_no_repeats_within_a_batch(dataset):
    sampler = BatchSampler(dataset, SMALL, seed=2)
    for step in range(30):
        rows = sampler.plan(step)
        assert len({row[0].frame.identity for row in rows}) == 2
        for row in rows:
            assert len({plan.frame.row for plan in row}) == 2
            assert {plan.frame.identity for plan in row} == {row[0].frame.identity}
            assert all(len(set(plan.views)) == 2 for plan in row)


def test_more_asked_than_there_is_repeats_evenly(dataset):
    options = dataclasses.replace(SMALL, identities_per_batch=4, frames_per_identity=6, views_per_frame=5)
    rows = BatchSampler(dataset, options).plan(0)
    assert collections.Counter(row[0].frame.identity for row in rows) == {"000": 2, "001": 2}
    for row in rows:
        assert set(collections.Counter(plan.frame.row for plan in row).values()) == {2}
        assert all(set(plan.views) == {0, 1, 2} for plan in row)


def test_face_comes_from_another_view(dataset):
    options = dataclasses.replace(SMALL, views_per_frame=1, synthesized_probability=0.0)
    sources = collections.Counter()
    for plan in cells(BatchSampler(dataset, options), range(60)):
        assert plan.synthesized is None and plan.face_view in (0, 1)
        assert plan.face_view not in plan.views and plan.nonface_view in (0, 1)
        sources[plan.views[0], plan.face_view, plan.nonface_view] += 1
    assert {key[:2] for key in sources} == {(0, 1), (1, 0), (2, 0), (2, 1)}
    assert {key[2] for key in sources} == {0, 1}


def test_synthesized_probability(dataset):
    def plans(probability: float) -> list:
        options = dataclasses.replace(SMALL, synthesized_probability=probability)
        return cells(BatchSampler(dataset, options), range(100))

    assert all(plan.face_view is None for plan in plans(1.0))
    assert {plan.synthesized for plan in plans(1.0)} == {0, 1}
    share = np.mean([plan.synthesized is not None for plan in plans(0.3)])
    assert abs(share - 0.3) < 0.07  # three standard deviations of 400 draws


def test_monocular_frame_is_its_own_other_view(tmp_path):
    dataset = layout.open_dataset(write_dataset(tmp_path / "data", views=("0",), synthesized=0))
    plans = cells(BatchSampler(dataset, SMALL), range(3))
    assert len(plans) == 12
    assert all(plan.views == (0, 0) and plan.face_view == plan.nonface_view == 0 for plan in plans)


def test_frames_without_a_face_are_left_out(tmp_path):
    root = write_dataset(tmp_path / "data", synthesized=0)
    for view in ("0", "2"):
        (root / f"000/images/0001/face_{view}.jpg").unlink()
    dataset = layout.open_dataset(root)
    plans = cells(BatchSampler(dataset, SMALL), range(20))
    assert {plan.frame.row for plan in plans} == {0, 2, 3, 4, 5}
    backs = [item for item in layout.select(dataset) if item.frame.row == 1]
    with pytest.raises(InputError, match="no frame of .* shows a face"):
        BatchSampler(dataset, SMALL, selection=backs)
    with pytest.raises(InputError, match="no face image for frame 0001 of 000"):
        list(evaluation_plans(dataset, backs))


def test_training_never_touches_what_is_held_out(split):
    plans = cells(BatchSampler(split, SMALL, selection=layout.select(split)), range(40))
    assert {plan.frame.name for plan in plans} == {"0000", "0001"}
    assert {view for plan in plans for view in plan.views} == {0, 2}
    assert {plan.face_view for plan in plans} == {0, None} and {plan.nonface_view for plan in plans} == {0}


@pytest.mark.parametrize("count", [2, 4])
def test_processes_make_the_rows_of_one_batch(dataset, count):
    options = dataclasses.replace(SMALL, identities_per_batch=4)
    whole = BatchSampler(dataset, options, seed=5).batch(9)
    parts = [
        BatchSampler(dataset, options, seed=5, process_index=index, process_count=count).batch(9)
        for index in range(count)
    ]
    assert all(part.image.shape[0] == 4 // count for part in parts)
    assert_same(jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts), whole)


def test_options_are_checked(dataset):
    with pytest.raises(InputError, match="views_per_frame=0"):
        BatchOptions(views_per_frame=0)
    with pytest.raises(InputError, match="synthesized_probability=1.5"):
        BatchOptions(synthesized_probability=1.5)
    with pytest.raises(InputError, match="does not divide over 3 processes"):
        BatchSampler(dataset, SMALL, process_count=3)
    with pytest.raises(InputError, match="seed=-1"):
        BatchSampler(dataset, SMALL, seed=-1)


def test_cache_keeps_its_limit_and_the_same_pixels(dataset):
    sampler = BatchSampler(dataset, SMALL)
    tight = BatchSampler(dataset, SMALL, pixels=pixel_source(dataset, SMALL, cache_bytes=6000))
    for step in range(6):
        assert_same(sampler.batch(step), tight.batch(step))
        assert 0 < tight.pixels.cached_bytes <= 6000
    assert sampler.pixels.cached_bytes > 6000


def test_cache_drops_the_least_recent(dataset, monkeypatch):
    decoded = []
    load_face = layout.load_face

    def recording(dataset, frame, view, *, size):
        decoded.append((frame.row, view))
        return load_face(dataset, frame, view, size=size)

    monkeypatch.setattr(layout, "load_face", recording)
    pixels = pixel_source(dataset, SMALL, cache_bytes=2 * 16 * 16 * 3)  # two face images
    first, second, third = ((dataset.frames[row], 0) for row in (0, 1, 2))
    for frame, view in (first, second, first, third, first, second):
        pixels.face(frame, view)
    assert decoded == [(0, 0), (1, 0), (2, 0), (1, 0)]


def test_cache_decodes_once(dataset, monkeypatch):
    decoded = collections.Counter()
    load_view = layout.load_view

    def counting(dataset, frame, view, *, size):
        decoded[frame.row, view] += 1
        return load_view(dataset, frame, view, size=size)

    monkeypatch.setattr(layout, "load_view", counting)
    sampler = BatchSampler(dataset, SMALL)
    for step in range(12):
        sampler.batch(step)
    assert len(decoded) == 18 and set(decoded.values()) == {1}


@pytest.mark.parametrize("workers", [1, 3])
def test_prefetch_yields_the_batches_in_order(dataset, workers):
    sampler = BatchSampler(dataset, SMALL)
    batches = list(prefetch(sampler, start_step=4, stop_step=9, depth=3, workers=workers))
    assert len(batches) == 5
    for step, batch in zip(range(4, 9), batches, strict=True):
        assert_same(batch, sampler.batch(step))


def test_prefetch_stays_within_its_depth_and_stops(dataset, monkeypatch):
    made = []
    sampler = BatchSampler(dataset, SMALL)
    batch = sampler.batch(0)
    monkeypatch.setattr(sampler, "batch", lambda step: (made.append(step), batch)[1])
    before = set(threading.enumerate())
    batches = prefetch(sampler, depth=2)
    next(batches)
    next(batches)
    assert len(made) <= 4
    batches.close()
    assert set(threading.enumerate()) == before
    assert made == sorted(made) and made[-1] <= 3


def test_closing_prefetch_drops_the_batches_not_begun(dataset, monkeypatch):
    sampler = BatchSampler(dataset, SMALL)
    batch, made, begun, release = sampler.batch(0), [], threading.Event(), threading.Event()

    def blocking(step):
        made.append(step)
        if step > 0:
            begun.set()
            release.wait(timeout=10.0)
        return batch

    monkeypatch.setattr(sampler, "batch", blocking)
    batches = prefetch(sampler, depth=5)
    next(batches)
    assert begun.wait(timeout=10.0)  # the worker is inside batch 1, with four more waiting
    threading.Timer(0.3, release.set).start()
    batches.close()
    assert made == [0, 1]


def test_prefetch_raises_where_the_fault_is(tmp_path: pathlib.Path):
    root = write_dataset(tmp_path / "data", synthesized=0)
    dataset = layout.open_dataset(root)
    options = dataclasses.replace(SMALL, identities_per_batch=1, frames_per_identity=1, views_per_frame=1)
    sampler = BatchSampler(dataset, options)
    path = sampler.plan(2)[0][0].frame.views[sampler.plan(2)[0][0].views[0]].image
    path.write_bytes(path.read_bytes()[:60])
    seen = []
    before = set(threading.enumerate())
    with pytest.raises(InputError, match=f"cannot decode image .*{path.name}"):
        for batch in prefetch(sampler, depth=4):
            seen.append(int(batch.frame[0, 0]))
    assert seen == [sampler.plan(step)[0][0].frame.row for step in range(2)]
    assert set(threading.enumerate()) == before


def test_evaluation_walks_everything_in_order(split):
    pixels = pixel_source(split, SMALL)
    selection = layout.select(split, views="held_out")
    shown = [(plan, batch) for plan, batch in evaluation_batches(pixels, selection)]
    assert [plan.frame.row for plan, _ in shown] == [0, 1, 3, 4]
    for plan, batch in shown:
        assert plan.views == (1,) and (plan.face_view, plan.nonface_view) == (
            0,
            0,
        )  # frontal, and of training
        assert batch.image.shape == (1, 1, 1, 24, 24, 3) and batch.face_image.shape == (1, 1, 16, 16, 3)
        image, _ = layout.load_view(split, plan.frame, 1, size=24)
        np.testing.assert_allclose(batch.image[0, 0, 0], image / 255.0, atol=1e-6)
        assert batch.frame[0, 0] == plan.frame.row
    unseen = list(evaluation_plans(split, layout.select(split, frames="held_out", views="all")))
    assert [(plan.frame.row, plan.views, plan.face_view) for plan in unseen] == [
        (2, (0, 1, 2), 0),
        (5, (0, 1, 2), 0),
    ]


def test_evaluation_takes_the_most_frontal_view(dataset):
    plans = list(evaluation_plans(dataset, layout.select(dataset)))
    assert len(plans) == 6 and {plan.face_view for plan in plans} == {0}
    sideways = [dataclasses.replace(item, views=(1, 2)) for item in layout.select(dataset)]
    assert {plan.face_view for plan in evaluation_plans(dataset, sideways, references=sideways)} == {1}
    backs = [dataclasses.replace(item, views=(2,)) for item in layout.select(dataset)]
    behind = list(evaluation_plans(dataset, backs, references=backs))
    assert {(plan.face_view, plan.synthesized, plan.nonface_view) for plan in behind} == {(None, 0, 2)}
