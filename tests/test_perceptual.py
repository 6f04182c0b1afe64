import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.signal import correlate
from skimage import data
from skimage.transform import resize

from gphm_jax.errors import InputError
from gphm_jax.perceptual import Lpips, load_lpips, lpips

SHAPES = {
    "alex": [(11, 3, 0), (5, 0, 1), (3, 1, 2), (3, 2, 3), (3, 3, 4)],
    "vgg": [(3, max(i - 1, 0), i) for i in range(13)],
}
TAPS = {"alex": [0, 1, 2, 3, 4], "vgg": [1, 3, 6, 9, 12]}
distance = jax.jit(lpips)


def small_network(net: str, channels: int = 3) -> Lpips:
    """The real layout with a few channels a layer: quick enough for finite differences and loops."""
    rng = np.random.default_rng(7)
    kernels = [
        rng.normal(size=(k, k, 3 if i == 0 else channels, channels))
        for i, (k, _, _) in enumerate(SHAPES[net])
    ]
    kernels = [kernel * np.sqrt(2.0 / np.prod(kernel.shape[:3])) for kernel in kernels]
    return Lpips(
        net=net,
        kernels=tuple(jnp.asarray(kernel) for kernel in kernels),
        biases=tuple(jnp.asarray(0.1 * rng.normal(size=channels)) for _ in kernels),
        heads=tuple(jnp.asarray(rng.uniform(0.1, 1.0, size=channels)) for _ in range(5)),
    )


def textbook(weights: Lpips, image: np.ndarray, truth: np.ndarray) -> float:
    """LPIPS of two images [h w 3] by loops over channels and windows."""

    def features(x):
        x = (2.0 * x - 1.0 - np.array([-0.030, -0.088, -0.188])) / np.array([0.458, 0.448, 0.450])
        taps = []
        for layer, (kernel, bias) in enumerate(zip(weights.kernels, weights.biases, strict=True)):
            kernel = np.asarray(kernel)
            pooled = {"alex": {1: 3, 2: 3}, "vgg": {2: 2, 4: 2, 7: 2, 10: 2}}[weights.net].get(layer)
            if pooled:
                h, w = (x.shape[0] - pooled) // 2 + 1, (x.shape[1] - pooled) // 2 + 1
                windows = [
                    [x[2 * r : 2 * r + pooled, 2 * c : 2 * c + pooled] for c in range(w)] for r in range(h)
                ]
                x = np.array([[window.max(axis=(0, 1)) for window in row] for row in windows])
            stride = 4 if kernel.shape[0] == 11 else 1
            pad = 2 if kernel.shape[0] == 11 else kernel.shape[0] // 2
            x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
            outputs = [
                correlate(x, kernel[..., o], mode="valid")[::stride, ::stride, 0]
                for o in range(kernel.shape[-1])
            ]
            x = np.maximum(np.stack(outputs, axis=-1) + np.asarray(bias), 0.0)
            if layer in TAPS[weights.net]:
                taps.append(x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-10))
        return taps

    pairs = zip(features(image), features(truth), weights.heads, strict=True)
    return float(sum(np.mean((x - y) ** 2 @ np.asarray(head)) for x, y, head in pairs))


def photograph(size: int = 64) -> np.ndarray:
    face = data.astronaut()[0:220, 110:330] / 255.0
    return resize(face, (size, size), anti_aliasing=True).astype(np.float32)


@pytest.mark.parametrize(("net", "size"), [("vgg", (18, 35)), ("alex", (35, 44))])
def test_it_is_the_textbook_formula(net, size, float64):
    rng = np.random.default_rng(0)
    weights = small_network(net)
    image, truth = rng.uniform(size=(2, 2, *size, 3))
    expected = [textbook(weights, x, y) for x, y in zip(image, truth, strict=True)]
    assert min(expected) > 1e-3
    measured = distance(weights, jnp.asarray(image), jnp.asarray(truth))
    np.testing.assert_allclose(
        measured, expected, rtol=1e-7
    )  # 1e-10 beside a length, or its square under the root


@pytest.mark.parametrize(("net", "size"), [("vgg", 16), ("alex", 32)])
def test_its_gradient_is_that_of_finite_differences(net, size, float64):
    rng = np.random.default_rng(1)
    weights = small_network(net)
    image, truth = jnp.asarray(rng.uniform(size=(2, size, size, 3)))
    along = jnp.asarray(rng.normal(size=image.shape))
    slope = jax.jit(jax.grad(lambda x: lpips(weights, x, truth)))(image)
    h = 1e-7
    difference = (
        distance(weights, image + h * along, truth) - distance(weights, image - h * along, truth)
    ) / (2 * h)
    assert abs(difference) > 1e-4
    np.testing.assert_allclose(jnp.sum(slope * along), difference, rtol=1e-5)


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_published_weights_rank_distortions(net):
    weights = load_lpips(net)
    truth = photograph()
    noise = np.random.default_rng(2).normal(size=truth.shape)
    blurred = [ndimage.gaussian_filter(truth, (s, s, 0)) for s in (0.0, 0.7, 1.5, 3.0)]
    noisy = [np.clip(truth + s * noise, 0.0, 1.0) for s in (0.0, 0.03, 0.1, 0.3)]
    images = np.stack([*blurred, *noisy]).astype(np.float32)
    values = np.asarray(distance(weights, jnp.asarray(images), jnp.asarray(np.stack([truth] * 8))))
    np.testing.assert_allclose(values[[0, 4]], 0.0, atol=1e-9)
    assert (np.diff(values[:4]) > 0.005).all() and (np.diff(values[4:]) > 0.005).all()
    assert values.max() < 1.5


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_gradients_are_finite_at_flat_pictures(net):
    weights = jax.tree.map(lambda x: x.astype(jnp.float32), small_network(net))
    dead = dataclasses.replace(
        weights, biases=tuple(b - 10.0 for b in weights.biases)
    )  # every activation is zero
    gradient = jax.jit(jax.grad(lambda x, w: jnp.sum(lpips(w, x, 0.5 * jnp.ones_like(x)))))
    for level in (0.0, 0.5, 1.0):
        flat = jnp.full((1, 32, 32, 3), level)
        assert np.isfinite(gradient(flat, weights)).all() and np.isfinite(gradient(flat, dead)).all()


def test_leading_axes_are_kept():
    weights = jax.tree.map(lambda x: x.astype(jnp.float32), small_network("vgg"))
    images = jnp.asarray(np.random.default_rng(3).uniform(size=(2, 3, 16, 16, 3)), jnp.float32)
    values = distance(weights, images, images[::-1])
    assert values.shape == (2, 3)
    np.testing.assert_allclose(values[1, 2], distance(weights, images[1, 2], images[0, 2]), rtol=1e-4)


def test_small_pictures_are_refused():
    with pytest.raises(ValueError, match="at least 16"):
        lpips(small_network("vgg"), jnp.zeros((15, 40, 3)), jnp.zeros((15, 40, 3)))


class Call:
    """What a hostile pickle does: names a function to call at load."""

    def __reduce__(self):
        return print, ("called",)


def test_a_pickle_that_names_code_is_refused(tmp_path, capsys):
    path = tmp_path / "vgg16.ckpt"
    path.write_bytes(pickle.dumps({"VGG16_0": Call()}))
    with pytest.raises(InputError, match="builtins.print"):
        load_lpips("vgg", path=path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"\x80\x04]q\x00.", pickle.dumps({"VGG16_0": {}})])
def test_a_wrong_file_is_one_line(tmp_path, content):
    path = tmp_path / "vgg16.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="does not hold the weights of LPIPS-vgg") as caught:
        load_lpips("vgg", path=path)
    assert "\n" not in str(caught.value)
