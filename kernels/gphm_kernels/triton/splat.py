"""Blending on the GPU: lists of splats by plain JAX, then kernels that a launcher runs.

Lists are made by `reference.tiles` with int32 sort keys, the ones that XLA's GPU sort is fast for, and in buffers of
fixed size. A scene whose lists do not fit takes another group of tiles, so that nothing is dropped. What a group
holds is known to the device alone: kernels read its bounds from memory, and are launched for all tiles. Only the loop
over groups asks the host, which reads one flag a group (one group is the rule). A fixed number of groups would read
none, and would either drop splats of crowded scenes or sort an empty buffer many times in all others.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gphm_kernels.reference import splat as reference
from gphm_kernels.reference.tiles import TILE, Bins, Layout, capacity, make_layout, sweep_groups
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

    def visit(carry: tuple[Array, Array], bins: Bins, first: Array, last: Array) -> tuple[Array, Array]:
        inputs = (*arrays, order[bins.primitive[bins.slot]], bins.start, jnp.stack([first, last]))
        grid = layout.tiles, padded.shape[-1] // block
        image, alpha = run(launch, f"blend_fwd_{block}", inputs, carry, _sizes(layout, padded), grid)
        return image, alpha

    empty = tuple(
        jnp.zeros((batch, height, width, *last), jnp.float32) for last in ((padded.shape[-1],), ())
    )
    carry = promote(empty, varying_axes(ordered, background))
    image, alpha = sweep_groups(layout, ordered.rectangles, reference.touches(ordered), carry, visit)
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
    slots, columns = capacity(layout, ordered.rectangles), (reference.GEOMETRY, padded.shape[-1])
    axes = varying_axes(ordered, cotangent, suffix)

    def visit(carry: tuple[Array, Array], bins: Bins, first: Array, last: Array) -> tuple[Array, ...]:
        listed = order[bins.primitive[bins.slot]], bins.slot, bins.start, jnp.stack([first, last])
        inputs = (means2d, conics, opacities, padded, *listed, cotangent, suffix)
        rows = tuple(promote(jnp.zeros((slots, c), jnp.float32), axes) for c in columns)
        rows = run(launch, f"blend_bwd_{block}", inputs, rows, _sizes(layout, padded), (layout.tiles, 1))
        end = jnp.cumsum(bins.slots)
        return tuple(_sum_rows(launch, *pair, end, order) for pair in zip(rows, carry, strict=True))

    carry = tuple(promote(jnp.zeros((order.shape[0], c), jnp.float32), axes) for c in columns)
    geometry, d_features = sweep_groups(layout, ordered.rectangles, reference.touches(ordered), carry, visit)
    geometry = geometry.reshape(*opacities.shape, -1)
    d_features = d_features.reshape(*opacities.shape, -1)[..., : features.shape[-1]]
    return geometry[..., :2], geometry[..., 2:5], geometry[..., 5], d_features, d_background


def _sum_rows(launch: Launcher, values: Array, sums: Array, end: Array, order: Array) -> Array:
    """Adds each depth-ordered splat's rows of `values`, which are neighbours, to the splat's row of `sums`."""
    columns = values.shape[1]
    grid = order.shape[0], -(-columns // KERNELS["sum_rows"].constants["CHANNELS"])
    return run(launch, "sum_rows", (values, end, order), (sums,), (columns,), grid)[0]


def _channel_block(function: str, channels: int) -> int:
    """The channels of one product: the least that holds them all, or the kernel's largest."""
    blocks = CHANNEL_BLOCKS[function]
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
