import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gphm_jax import files
from gphm_jax.errors import InputError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "value.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    with pytest.raises(RuntimeError), files.atomic_path(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


def test_a_path_is_tried_without_a_trace(tmp_path):
    (tmp_path / "file").write_text("kept")
    for path in ("new.mp4", "deep/down/new.mp4", "file"):
        files.check_writable(tmp_path / path)
    for path in (tmp_path, tmp_path / "file" / "new.mp4"):
        with pytest.raises(InputError, match="name a"):
            files.check_writable(path)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"] and (tmp_path / "file").read_text() == "kept"


def test_json_holds_arrays_paths_and_no_nan(tmp_path):
    value = {
        "x": jnp.arange(2),
        "y": np.float32(0.5),
        "bad": [float("nan"), np.array(np.inf)],
        "path": tmp_path,
        "pair": (1, None),
        3: True,
    }
    files.write_json(tmp_path / "v.json", value)
    expected = {
        "x": [0, 1],
        "y": 0.5,
        "bad": [None, None],
        "path": str(tmp_path),
        "pair": [1, None],
        "3": True,
    }
    assert json.loads((tmp_path / "v.json").read_text()) == expected


@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
def test_pictures_come_back(tmp_path, channels):
    image = np.random.default_rng(0).uniform(-0.2, 1.2, size=(5, 7, *channels)).astype(np.float32)
    files.write_image(tmp_path / "x.png", image)
    with Image.open(tmp_path / "x.png") as opened:
        read = np.asarray(opened)
    expected = np.round(255.0 * np.clip(image, 0.0, 1.0))
    np.testing.assert_array_equal(read, expected[..., 0] if channels == (1,) else expected)
    files.write_image(tmp_path / "y.png", files.to_bytes(image))
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "y.png").read_bytes()


def test_the_suffix_picks_the_format(tmp_path):
    smooth = np.broadcast_to(np.linspace(0.0, 1.0, 32, dtype=np.float32)[:, None, None], (32, 32, 3))
    for name, kind in (("a.jpg", "JPEG"), ("a.webp", "WEBP"), ("a.png", "PNG")):
        files.write_image(tmp_path / name, jnp.asarray(smooth))
        with Image.open(tmp_path / name) as opened:
            assert opened.format == kind
            assert np.abs(np.asarray(opened) / 255.0 - smooth).max() < 0.05
