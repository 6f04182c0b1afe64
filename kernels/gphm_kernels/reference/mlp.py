"""A fully connected network over many points in plain JAX."""

import jax
from jaxtyping import Array, Float


def mlp_fwd(
    features: Float[Array, "i n d"],
    parameters: Float[Array, "p"],
    first_bias: Float[Array, "i f w"],
    *,
    sizes: tuple[int, ...],
) -> Float[Array, "i f n e"]:
    """h_1 = W_1 x + b_1 + first_bias, h_l = W_l relu(h_{l-1}) + b_l at every row x of the features.

    `sizes` is d and the width after each layer; `parameters` is, per layer, its weights [in, out] in rows, and its
    bias.
    """
    offset = 0
    hidden = features
    for layer, (width_in, width_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        middle, end = offset + width_in * width_out, offset + (width_in + 1) * width_out
        hidden = hidden @ parameters[offset:middle].reshape(width_in, width_out)
        hidden = hidden + parameters[middle:end].reshape((1,) * (hidden.ndim - 1) + (width_out,))
        if layer == 0:
            hidden = hidden[:, None] + first_bias[:, :, None]
        if layer < len(sizes) - 2:
            hidden = jax.nn.relu(hidden)
        offset = end
    return hidden


def mlp_bwd(
    features: Float[Array, "i n d"],
    parameters: Float[Array, "p"],
    first_bias: Float[Array, "i f w"],
    d_result: Float[Array, "i f n e"],
    *,
    sizes: tuple[int, ...],
) -> tuple[Array, Array, Array]:
    """Cotangents of features, parameters and first_bias; the activations are computed again."""
    _, transpose = jax.vjp(lambda *inputs: mlp_fwd(*inputs, sizes=sizes), features, parameters, first_bias)
    return transpose(d_result)
