"""A differentiable fully connected network over many points."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gphm_kernels import backends
from gphm_kernels.arguments import as_floating, check_devices, common_dtype
from gphm_kernels.reference import mlp as reference
from gphm_kernels.varying import promote, varying_axes

MAX_LAYERS, MAX_WIDTH = 1024, 65536  # what the native code takes


def point_mlp(
    features: Float[Array, "*h n d"],
    kernels: Sequence[Float[Array, "_ _"]],
    biases: Sequence[Float[Array, "_"]],
    first_bias: Float[Array, "*b w"],
    *,
    backend: str = "auto",
) -> Float[Array, "*c n e"]:
    """The network h_1 = x W_1 + b_1 + first_bias, h_l = relu(h_{l-1}) W_l + b_l at each of n points; the last h_l.

    `kernels` are W_1 [d, w], W_2 [w, ...], ... and `biases` b_1 [w], b_2, ...; there is at least one layer.
    `first_bias` is the product of the first layer with a code that all points share; the leading dimensions of
    `features` and `first_bias` broadcast. Features given once for many codes ([i, 1, n, d] with codes [i, f, w], or
    [n, d] with any) are multiplied by W_1 once.

    Differentiable in every array. The backward pass of a fused backend computes the activations again, and keeps
    nothing but the inputs; "xla" is plain JAX, whose gradient keeps the activations. Raises ValueError on wrong
    shapes, dtypes or options.
    """
    features, kernels, biases, first_bias = _as_arrays(features, kernels, biases, first_bias)
    sizes, batch = _check(features, kernels, biases, first_bias)
    dtype = features.dtype
    backends.check(backend, dtype)
    layers = zip(kernels, biases, strict=True)
    parameters = jnp.concatenate([x.reshape(-1) for layer in layers for x in layer])
    features, first_bias = _flatten(features, first_bias, batch)
    arrays = (features, parameters, first_bias)
    # Outside the custom_vjp, so that inside `shard_map` the gradient of a replicated input is summed over devices.
    arrays = promote(arrays, varying_axes(arrays))
    if backends.dispatch("mlp_fwd", backend, dtype) is reference.mlp_fwd:
        result = reference.mlp_fwd(*arrays, sizes=sizes)
    else:
        result = _mlp(sizes, backend, *arrays)
    return result.reshape(*batch, *result.shape[2:])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mlp(
    sizes: tuple[int, ...], backend: str, features: Array, parameters: Array, first_bias: Array
) -> Array:
    forward = backends.dispatch("mlp_fwd", backend, features.dtype)
    return forward(features, parameters, first_bias, sizes=sizes)


def _mlp_fwd(sizes: tuple[int, ...], backend: str, *inputs: Array) -> tuple[Array, Any]:
    return _mlp(sizes, backend, *inputs), inputs


def _mlp_bwd(sizes: tuple[int, ...], backend: str, inputs: Any, d_result: Array) -> tuple[Array, ...]:
    backward = backends.dispatch("mlp_bwd", backend, d_result.dtype)
    return tuple(backward(*inputs, d_result, sizes=sizes))


_mlp.defvjp(_mlp_fwd, _mlp_bwd)


def _as_arrays(
    features: Any, kernels: Sequence[Any], biases: Sequence[Any], first_bias: Any
) -> tuple[Array, tuple[Array, ...], tuple[Array, ...], Array]:
    """The arguments as arrays of one floating dtype, on one device."""
    named = {"features": features, "first_bias": first_bias}
    named |= {f"kernels[{i}]": x for i, x in enumerate(kernels)} | {f"biases[{i}]": x for i, x in enumerate(biases)}
    arrays = {name: as_floating("point_mlp", name, value) for name, value in named.items()}
    dtype = common_dtype("point_mlp", arrays)
    check_devices("point_mlp", arrays)
    features, first_bias, *layers = (x.astype(dtype) for x in arrays.values())
    number = len(kernels)
    return features, tuple(layers[:number]), tuple(layers[number:]), first_bias


def _check(
    features: Array, kernels: tuple[Array, ...], biases: tuple[Array, ...], first_bias: Array
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The width before the network and after each layer, and the broadcast leading shape; ValueError if none fit."""
    if not kernels or len(kernels) != len(biases):
        raise ValueError(
            f"point_mlp: {len(kernels)} kernels and {len(biases)} biases; give one of each for every layer"
        )
    if len(kernels) > MAX_LAYERS:
        raise ValueError(f"point_mlp: {len(kernels)} layers; there can be {MAX_LAYERS}")
    if features.ndim < 2 or first_bias.ndim < 1:
        raise ValueError(
            f"point_mlp: features {features.shape} and first_bias {first_bias.shape} must end in [n, d] and [w]"
        )
    sizes = [features.shape[-1]]
    for layer, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        if kernel.ndim != 2 or kernel.shape[0] != sizes[-1] or bias.shape != kernel.shape[1:]:
            raise ValueError(
                f"point_mlp: layer {layer} has a kernel of shape {kernel.shape} and a bias of shape {bias.shape}; "
                f"they must be [{sizes[-1]}, m] and [m]"
            )
        sizes.append(kernel.shape[1])
    if not all(1 <= size <= MAX_WIDTH for size in sizes):
        raise ValueError(f"point_mlp: the widths are {sizes}; each must be from 1 to {MAX_WIDTH}")
    if first_bias.shape[-1] != sizes[1]:
        raise ValueError(
            f"point_mlp: first_bias has shape {first_bias.shape}; it must end in the first layer's width, {sizes[1]}"
        )
    try:
        batch = np.broadcast_shapes(features.shape[:-2], first_bias.shape[:-1])
    except ValueError:
        raise ValueError(
            f"point_mlp: the leading dimensions of features {features.shape} and first_bias {first_bias.shape} "
            "do not broadcast"
        ) from None
    return tuple(sizes), batch


def _flatten(
    features: Array, first_bias: Array, batch: tuple[int, ...]
) -> tuple[Float[Array, "i n d"], Float[Array, "i f w"]]:
    """Features of i images and first biases of their f frames, where the last axes that features repeat are frames."""
    leading = (1,) * (len(batch) + 2 - features.ndim) + features.shape[:-2]
    images = len(batch)
    while images and leading[images - 1] == 1:
        images -= 1
    rows = features.shape[-2:]
    # An axis repeated before one that is not can only be repeated in memory.
    features = jnp.broadcast_to(
        features.reshape(*leading, *rows), (*batch[:images], *leading[images:], *rows)
    )
    first_bias = jnp.broadcast_to(first_bias, (*batch, first_bias.shape[-1]))
    shape = math.prod(batch[:images]), math.prod(batch[images:])
    return features.reshape(shape[0], *rows), first_bias.reshape(*shape, first_bias.shape[-1])
