"""Blending on the GPU: lists of splats by plain JAX, then kernels that a launcher runs, without a word to the host.

Lists are made by `reference.tiles` with int32 sort keys, the ones that XLA's GPU sort is fast for, and in a buffer of
fixed size. The tiles whose lists do not fit, known to the device alone, have none: kernels of their own walk all
splats of the image there, so that nothing is dropped. Every program has the same launches and no loop, whatever the
scene; those for crowded tiles end at once where there are none.

A listed tile's gradients have rows of their own, which are summed in order; a crowded tile's are summed in fixed
point (see `kernels.fixed`), in buffers as large as three times the gradients. Both have the same bits on every run.
"""

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gphm_kernels.reference import splat as reference
from gphm_kernels.reference.tiles import TILE, Layout, bin_first, make_layout
from gphm_kernels.triton.launches import CHANNEL_BLOCKS, KERNELS, Launcher, run
from gphm_kernels.varying import promote, varying_axes

MAX_ROW = 2**31 // TILE  # numbers in a row of the image: kernels index a tile's 16 rows with int32


def blend_fwd(
    means2d: Float[Array, "b n 2"],
    conics: Float[Array, "b n 3"],
    opacities: Float[Array, "b n"],
    depths: Float[Array, "b n"],
    features: Float[Array, "b n c"],
    background: Float[Array, "b c"],
    *,
    width: int,
    height: int,
    launch: Launcher,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w"]]:
    """`reference.splat.blend_fwd` by the kernels that `launch` runs; float32."""
    if not means2d.shape[1]:
        return reference.blend_fwd(
            means2d, conics, opacities, depths, features, background, width=width, height=height
        )
    batch, channels = background.shape
    layout = make_layout(batch, width, height)
    ordered, order = reference.arrange(layout, means2d, conics, opacities, depths, features)
    block = _channel_block("blend_fwd", channels)
    padded = _pad_channels(features, block)
    arrays = (means2d, conics, opacities, padded, _pad_channels(background, block))
    bins, last = bin_first(layout, ordered.rectangles, reference.touches(ordered))
    empty = tuple(
        jnp.zeros((batch, height, width, *last_axis), jnp.float32) for last_axis in ((padded.shape[-1],), ())
    )
    drawn = promote(empty, varying_axes(ordered, background))
    sizes = (*_sizes(layout, padded), means2d.shape[1])
    grid = layout.tiles, padded.shape[-1] // block
    for name, splats, bounds in (
        ("blend_fwd", order[bins.primitive[bins.slot]], bins.start),
        ("crowded_fwd", order, jnp.stack(ordered.rectangles, -1)),
    ):
        drawn = run(launch, f"{name}_{block}", (*arrays, splats, bounds, last), drawn, sizes, grid)
    image, alpha = drawn
    return image[..., :channels], alpha


def blend_bwd(
    means2d: Float[Array, "b n 2"],
    conics: Float[Array, "b n 3"],
    opacities: Float[Array, "b n"],
    depths: Float[Array, "b n"],
    features: Float[Array, "b n c"],
    background: Float[Array, "b c"],
    image: Float[Array, "b h w c"],
    alpha: Float[Array, "b h w"],
    d_image: Float[Array, "b h w c"],
    d_alpha: Float[Array, "b h w"],
    *,
    width: int,
    height: int,
    launch: Launcher,
) -> tuple[Array, Array, Array, Array, Array]:
    """`reference.splat.blend_bwd` by the kernels that `launch` runs; float32.

    With T_end = 1 - alpha, sum_j w_j g_j = G . (image - T_end background): the background cancels in the kernel's
    `suffix`, which is G . image - T_end d_alpha.
    """
    if not means2d.shape[1]:
        return means2d, conics, opacities, features, jnp.sum(d_image, (1, 2))
    layout = make_layout(background.shape[0], width, height)
    ordered, order = reference.arrange(layout, means2d, conics, opacities, depths, features)
    remaining = 1 - alpha
    d_background = jnp.einsum("bhw,bhwc->bc", remaining, d_image, precision=lax.Precision.HIGHEST)
    suffix = jnp.sum(d_image * image, -1) - remaining * d_alpha
    block = _channel_block("blend_bwd", features.shape[-1])
    padded, cotangent = _pad_channels(features, block), _pad_channels(d_image, block)
    bins, last = bin_first(layout, ordered.rectangles, reference.touches(ordered))
    splats, per_pixel = (means2d, conics, opacities, padded), (cotangent, suffix)
    axes, grid = varying_axes(ordered, *per_pixel), (layout.tiles, 1)
    columns, sizes = (reference.GEOMETRY, padded.shape[-1]), _sizes(layout, padded)

    def zeros(rows: int, dtype: DTypeLike, *last: int) -> tuple[Array, ...]:
        return tuple(promote(jnp.zeros((rows, c, *last), dtype), axes) for c in columns)

    listed = (*splats, order[bins.primitive[bins.slot]], bins.slot, bins.start, last, *per_pixel)
    rows = run(launch, f"blend_bwd_{block}", listed, zeros(bins.slot.size, jnp.float32), sizes, grid)

    unlisted = (*splats, order, jnp.stack(ordered.rectangles, -1), last, *per_pixel)
    crowded = zeros(order.size, jnp.int32) + zeros(order.size, jnp.int32, 2)  # pairs of int32: the kernel's int64
    room = _room(layout)
    for adding in (0, 1):
        crowded_sizes = (*sizes, opacities.shape[1], room, adding)
        crowded = run(launch, "crowded_bwd_16", unlisted, crowded, crowded_sizes, grid)

    def total(values: Array, peaks: Array, totals: Array, sums: Array) -> Array:
        inputs = values, jnp.cumsum(bins.slots), order, peaks, totals, last
        grid = order.size, -(-values.shape[1] // KERNELS["sum_rows"].constants["CHANNELS"])
        return run(launch, "sum_rows", inputs, (sums,), (values.shape[1], layout.tiles, room), grid)[0]

    geometry, d_features = map(total, rows, crowded[:2], crowded[2:], zeros(order.size, jnp.float32))
    geometry = geometry.reshape(*opacities.shape, -1)
    d_features = d_features.reshape(*opacities.shape, -1)[..., : features.shape[-1]]
    return geometry[..., :2], geometry[..., 2:5], geometry[..., 5], d_features, d_background


def _room(layout: Layout) -> int:
    """Bits of a crowded tile's gradient in `kernels.fixed`, such that sums over an image's tiles do not overflow."""
    return 62 - (layout.rows * layout.columns - 1).bit_length()


def _channel_block(kernel: str, channels: int) -> int:
    """The channels of one product: the least that holds them all, or the kernel's largest."""
    blocks = CHANNEL_BLOCKS[kernel]
    return next((size for size in blocks if channels <= size), blocks[-1])


def _pad_channels(values: Array, block: int) -> Array:
    """Zero channels up to a multiple of the block: kernels mask no channels."""
    return jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % block)])


def _sizes(layout: Layout, padded: Array) -> tuple[int, ...]:
    if layout.width * padded.shape[-1] >= MAX_ROW:
        raise ValueError(
            f"splat: {padded.shape[-1]} channels in an image {layout.width} wide are more than {MAX_ROW} numbers a "
            "row, which the GPU kernels cannot index: splat fewer channels at once, or choose backend='xla'"
        )
    return layout.width, layout.height, layout.columns, layout.rows, padded.shape[-1]
