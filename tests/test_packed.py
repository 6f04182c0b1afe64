"""Packed datasets: the same batches bit for bit, by any road; packing twice, halfway and of damaged files; damage."""

import dataclasses
import hashlib
import json
import pathlib
import pickle
import shutil

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from gphm_jax import files, jobs
from gphm_jax.data import images, layout, packed, packing
from gphm_jax.data.loading import grain_batches, training_batches
from gphm_jax.data.sampler import BatchOptions, BatchSampler, prefetch
from gphm_jax.errors import InputError, TrainingError
from gphm_jax.tools import pack as pack_tool
from tests.dataset_fixture import write_dataset

SMALL = BatchOptions(
    identities_per_batch=2,
    frames_per_identity=2,
    views_per_frame=2,
    image_size=24,
    face_size=16,
    nonface_size=12,
)
SIZES = packing.Sizes(face=16, nonface=12)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> pathlib.Path:
    """Pictures that go by every road: PNG, JPEG of three kinds, and an image that is its own mask."""
    held = {"held_out_views": ["2"], "held_out_frames": ["0002"], "image_size": 32, "people": ["ünnamed"]}
    root = write_dataset(tmp_path_factory.mktemp("plain") / "data", metadata=held, synthesized=2)
    folder = root / "000/images/0000"
    picture = Image.open(folder / "image_0.png").convert("RGB")
    (folder / "image_0.png").unlink()
    picture.save(folder / "image_0.jpg", quality=97, subsampling=0)
    picture = Image.open(folder / "image_2.png").convert("RGB")
    (folder / "image_2.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter, which no reader here heeds
    picture.save(folder / "image_2.jpg", quality=80, exif=exif)
    picture = Image.open(folder / "image_10.png").convert("CMYK")
    (folder / "image_10.png").unlink()
    picture.save(folder / "image_10.jpg")
    folder = root / "001/images/0000"
    with Image.open(folder / "image_2.png") as image, Image.open(folder / "mask_2.png") as mask:
        image.putalpha(mask.convert("L").point(lambda value: value * 3 // 4))
        image.save(folder / "image_2.png")
    (folder / "mask_2.png").unlink()
    return root


@pytest.fixture(scope="module")
def out(plain, tmp_path_factory) -> pathlib.Path:
    return packing.pack(plain, tmp_path_factory.mktemp("packed") / "out", shards=3, sizes=SIZES, workers=1)


@pytest.fixture
def copy(out, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(out, tmp_path / "copy"))


def assert_same(first, second) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sampler(path: pathlib.Path, **options) -> BatchSampler:
    parts = {key: options.pop(key) for key in ("process_index", "process_count") if key in options}
    return BatchSampler(layout.open_dataset(path), dataclasses.replace(SMALL, **options), seed=4, **parts)


def test_the_index_is_the_plain_dataset(plain, out):
    first, second = layout.open_dataset(plain), layout.open_dataset(out)
    for name in ("identities", "landmark_count", "image_size", "white_background", "metadata", "num_images"):
        assert getattr(first, name) == getattr(second, name), name
    assert (first.held_out_views, first.held_out_frames) == (second.held_out_views, second.held_out_frames)
    for a, b in zip(first.frames, second.frames, strict=True):
        for name in ("row", "identity_row", "identity", "name", "scale"):
            assert getattr(a, name) == getattr(b, name)
        for name in (
            "world_to_camera",
            "intrinsics",
            "recorded",
            "rotation",
            "translation",
            "landmarks",
            "facing",
            "shows_face",
        ):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True)
        assert a.params.read_bytes() == b.params.read_bytes()
        assert [(v.name, v.size) for v in a.views] == [(v.name, v.size) for v in b.views]
    encodings = {
        name: second.frames[0].views[n].image.shards.encoding(second.frames[0].views[n].image.number)
        for n, name in enumerate(("4:4:4", "turned", "CMYK"))
    }
    # The fast decoder wherever it is exact, and nowhere else.
    assert encodings == {"4:4:4": packed.FAST, "turned": packed.FAST, "CMYK": packed.FILE}


@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize("face_size", [16, 32])  # stored at this size, and not
def test_both_forms_give_the_same_batches(plain, out, white, face_size):
    options = {"face_size": face_size, "nonface_size": face_size - 4, "views_per_frame": 3}
    first, second = sampler(plain, **options), sampler(out, **options)
    for each in (first, second):
        each.pixels.dataset = dataclasses.replace(each.dataset, white_background=white)
    shown = set()
    for step in range(8):
        batch = first.batch(step)
        assert_same(batch, second.batch(step))
        shown |= set(np.asarray(batch.frame).ravel().tolist())
    assert shown == {0, 1, 3, 4}


def test_processes_make_the_rows_of_one_batch(plain, out):
    parts = [sampler(out, process_index=n, process_count=2).batch(5) for n in range(2)]
    assert parts[0].image.shape[0] == 1
    assert_same(jax.tree.map(lambda *x: np.concatenate(x), *parts), sampler(plain).batch(5))


def test_grain_gives_the_batches_of_a_plain_folder_from_any_step(plain, out):
    expected = list(prefetch(sampler(plain), start_step=3, stop_step=7))
    found = list(training_batches(sampler(out), start_step=3, stop_step=7))
    assert len(found) == 4
    for pair in zip(expected, found, strict=True):
        assert_same(*pair)
    whole = iter(grain_batches(sampler(out), start_step=0, stop_step=7, processes=0))
    for _ in range(3):
        next(whole)
    state = whole.get_state()
    again = iter(grain_batches(sampler(out), start_step=0, stop_step=7, processes=0))
    again.set_state(json.loads(json.dumps(state)))
    assert_same(next(again), expected[0])
    whole.close()
    again.close()


def test_processes_of_grain_give_the_same_batches(plain, out):
    expected = list(prefetch(sampler(plain), start_step=2, stop_step=5))
    found = list(training_batches(sampler(out), start_step=2, stop_step=5, processes=1))
    for pair in zip(expected, found, strict=True):
        assert_same(*pair)
    del found, pair  # memory shared with the process, which must not outlive Grain's clean-up


def test_a_copy_for_another_process_reads_the_same(out):
    first = sampler(out)
    expected = first.batch(1)
    second = pickle.loads(pickle.dumps(first))
    assert second.pixels.cached_bytes == 0 < first.pixels.cached_bytes
    assert_same(second.batch(1), expected)


def test_packing_twice_gives_the_same_bytes(plain, out, tmp_path):
    again = packing.pack(plain, tmp_path / "again", shards=3, sizes=SIZES, workers=1)
    first, second = tree(out), tree(again)
    assert sorted(first) == [packed.INDEX, packed.MANIFEST] + [
        f"shard-{n:05d}-of-00003.array_record" for n in range(3)
    ]
    manifests = [json.loads(each.pop(packed.MANIFEST)) for each in (first, second)]
    assert all(manifest.pop("date") for manifest in manifests) and manifests[0] == manifests[1]
    assert first == second
    assert "plain" not in str(manifests[0]), "a packed dataset does not say where it was made"


def test_the_number_of_shards_changes_no_batch(plain, out, tmp_path):
    single = packing.pack(plain, tmp_path / "single", sizes=packing.Sizes(face=0, nonface=0), workers=1)
    assert len(list(single.glob("shard-*"))) == 1
    many = layout.open_dataset(plain)
    assert len(packing.plan_shards(many, tmp_path, shards=99)) == len(many.frames)
    assert_same(sampler(single).batch(2), sampler(out).batch(2))


def test_an_interrupted_packing_leaves_nothing_and_goes_on(plain, out, tmp_path, monkeypatch):
    write, written = packing.pack_shard, []

    def interrupted(shard):
        if len(written) == 1:
            shard.path.with_name(".torn").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(shard.path.name)
        write(shard)

    target = tmp_path / "out"
    monkeypatch.setattr(packing, "pack_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        packing.pack(plain, target, shards=3, sizes=SIZES, workers=1)
    assert not target.exists() and len(written) == 1
    monkeypatch.setattr(packing, "pack_shard", lambda shard: (written.append(shard.path.name), write(shard)))
    packing.pack(plain, target, shards=3, sizes=SIZES, workers=1)
    assert len(written) == len(set(written)) == 3, "a finished shard is not written again"
    assert tree(target) == tree(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_shard_is_written_again_when_its_files_change(plain, tmp_path):
    root = pathlib.Path(shutil.copytree(plain, tmp_path / "data"))
    (shard,) = packing.plan_shards(layout.open_dataset(root), tmp_path, shards=1)
    assert not packing.is_done(shard)
    packing.pack_shard(shard)
    assert packing.is_done(shard)
    path = root / "001/images/0001/mask_0.png"
    files.write_image(path, 255 - images.read_gray(path))
    (changed,) = packing.plan_shards(layout.open_dataset(root), tmp_path, shards=1)
    assert not packing.is_done(changed)


def test_damaged_pictures_are_listed_and_packed_when_mended(plain, tmp_path):
    root = pathlib.Path(shutil.copytree(plain, tmp_path / "data"))
    path = root / "001/images/0001/face_0.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    target = tmp_path / "out"
    with pytest.raises(TrainingError, match="1 of 3 failed, listed in .*out.failed.json"):
        packing.pack(root, target, shards=3, sizes=SIZES, workers=1)
    (failure,) = json.loads((tmp_path / "out.failed.json").read_text())
    assert str(path) in failure["reason"] and failure["item"] == "shard-00002-of-00003.array_record"
    assert not target.exists()
    path.write_bytes(whole)
    packing.pack(root, target, shards=3, sizes=SIZES, workers=1)
    assert not (tmp_path / "out.failed.json").exists()
    assert_same(sampler(target).batch(0), sampler(plain).batch(0))


def test_bad_targets_and_sources(plain, out, tmp_path):
    with pytest.raises(InputError, match="holds a packed dataset"):
        packing.pack(plain, out)
    with pytest.raises(InputError, match="is packed already"):
        packing.pack(out, tmp_path / "x")
    with pytest.raises(InputError, match="is not an empty folder"):
        packing.pack(plain, plain)
    with pytest.raises(InputError, match="no dataset at"):
        packing.pack(tmp_path / "nowhere", tmp_path / "x")
    assert not list(tmp_path.iterdir())


def edit_manifest(root: pathlib.Path, **changes) -> None:
    path = root / packed.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda root: (root / "shard-00001-of-00003.array_record").unlink(), "missing shard .*shard-00001"),
        (lambda root: cut(root / "shard-00002-of-00003.array_record"), "shard-00002.* bytes and packed.json says"),
        (lambda root: cut(root / packed.INDEX), "index.npz is damaged"),
        (lambda root: (root / packed.INDEX).unlink(), "missing index .*index.npz"),
        (lambda root: cut(root / packed.MANIFEST), "cannot read .*packed.json"),
        (lambda root: edit_manifest(root, version=3), "packed.json is of version 3 and this program reads 1 to 2"),
        (lambda root: edit_manifest(root, shards=None), "packed.json has no valid 'shards'"),
        (lambda root: edit_manifest(root, shards=[{"name": "x"}]), "packed.json has no valid 'shards'"),
    ],
)  # fmt: skip
def test_what_is_missing_or_cut_is_found_when_opened(copy, harm, says):
    harm(copy)
    with pytest.raises(InputError, match=says) as caught:
        layout.open_dataset(copy)
    assert "\n" not in str(caught.value)


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def test_what_was_packed_before_pictures_had_edges_shows_all_of_them(copy):
    index = dict(np.load(copy / packed.INDEX))
    del index["recorded"]
    np.savez(copy / packed.INDEX, **index)
    digest = hashlib.sha256((copy / packed.INDEX).read_bytes()).hexdigest()
    edit_manifest(copy, version=1, index_sha256=digest)
    for frame in layout.open_dataset(copy).frames:
        for box, view in zip(frame.recorded, frame.views, strict=True):
            assert box.tolist() == [0, 0, view.size[1], view.size[0]] and box.dtype == np.float32


def test_damage_inside_a_shard_is_found_when_it_is_read(copy):
    path = copy / "shard-00000-of-00003.array_record"
    content = bytearray(path.read_bytes())
    dataset = layout.open_dataset(copy)
    picture = dataset.frames[0].views[1].image
    content[content.index(picture.read_bytes()) + 40] ^= 0xFF
    path.write_bytes(content)
    dataset = layout.open_dataset(copy)  # which reads no record
    with pytest.raises(
        InputError, match=r"cannot read .*shard-00000-of-00003.array_record \(record \d+\)"
    ) as caught:
        layout.load_view(dataset, dataset.frames[0], 1, size=24)
    assert "\n" not in str(caught.value)


def test_missing_packages_are_named(plain, out, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "grain", None)
    with pytest.raises(InputError, match=r"pip install 'gphm_jax\[packed\]'"):
        next(training_batches(sampler(plain), start_step=0, stop_step=1, processes=1))
    monkeypatch.setitem(__import__("sys").modules, "array_record", None)
    with pytest.raises(InputError, match=r"pip install 'gphm_jax\[packed\]'"):
        layout.open_dataset(out)


def test_flags(plain, tmp_path, monkeypatch):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    for kind in ("string", "integer", "enum"):
        define = getattr(flags, f"DEFINE_{kind}")
        monkeypatch.setattr(flags, f"DEFINE_{kind}", lambda *a, d=define, **k: d(*a, flag_values=values, **k))
    pack_tool.define_flags()
    values(["pack", f"--input={plain}", f"--out={tmp_path / 'x'}", "--shards=2", "--workers=1"])
    pack_tool.main([])
    assert len(list((tmp_path / "x").glob("shard-*"))) == 2
    values(["pack", "--shard_size=3"])
    with pytest.raises(InputError, match="exclude each other"):
        pack_tool.main([])
    values.out = None
    with pytest.raises(InputError, match="--out is missing"):
        pack_tool.main([])


def test_workers_pack_the_same_bytes(plain, out, tmp_path):
    assert jobs.available_cores() >= 1
    packing.pack(plain, tmp_path / "out", shards=3, sizes=SIZES, workers=2)
    assert tree(tmp_path / "out") == tree(out)
