"""The networks of spec: point MLPs, image encoders and the refine U-Net (Flax NNX).

Every point MLP that sees a code computes W_h h + W_z z with the code's product done once per image and
broadcast over the points: the same function as concatenating the code to each point, at a fraction of
the arithmetic.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gphm_jax.types import NUM_CHANNELS
from gphm_kernels import point_mlp

WIDE = 256  # from this width on the fused kernel's recomputation costs more than the memory traffic it saves


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes of all networks. The defaults are the paper's, or those inferred for it."""

    width: int = 512  # hidden layers of every point MLP
    depth: int = 4  # hidden layers of f_mean, f_id, f_exp, f_nf, f_col, f_att
    injection_depth: int = 8  # hidden layers of f_inj
    injection_residual: bool = False  # H = gamma + f_inj(gamma, z_id): short runs learn point detail sooner
    feature_dim: int = 128  # D, inferred
    identity_dim: int = 512  # z_id
    expression_dim: int = 128  # z_exp and z_nf, inferred
    octaves: int = 4  # positional encoding of f_mean, inferred
    encoder_widths: tuple[int, ...] = (32, 64, 128, 256)
    refine_widths: tuple[int, int, int] = (32, 64, 128)  # the U-Net's three resolutions
    refine_patch: int = (
        1  # pixels a side folded into channels in front of the U-Net; > 1 trades sharpness for speed
    )
    dynamics_width: int = 32  # f_dyn, the tiny network of the fitting


def positional_encoding(x: Float[Array, "*b 3"], octaves: int) -> Float[Array, "*b e"]:
    """x, and sin and cos of pi 2^k x for k < `octaves` (NeRF, eq. 4, with x kept)."""
    frequencies = jnp.pi * 2.0 ** jnp.arange(octaves, dtype=x.dtype)
    scaled = jnp.einsum("...d,o->...od", x, frequencies)
    scaled = scaled.reshape(*x.shape[:-1], 3 * octaves)
    return jnp.concatenate([x, jnp.sin(scaled), jnp.cos(scaled)], axis=-1)


class MLP(nnx.Module):
    """Fully connected network with `depth` hidden ReLU layers and, optionally, a code in its first layer.

    `point_backend` names the kernel; the default, "xla", is one that a sharded `jit` can divide (see
    `use_fused_points`). `code_scale` is the standard deviation of the code's product at the start, for a code of
    unit variance.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        width: int,
        depth: int,
        code_dim: int = 0,
        code_scale: float = 1.0,
        zero_last: bool = False,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.he_normal()
        sizes = [features_in] + [width] * depth
        self.hidden = nnx.List(
            [
                nnx.Linear(a, b, kernel_init=init, rngs=rngs)
                for a, b in zip(sizes[:-1], sizes[1:], strict=True)
            ]
        )
        code_init = nnx.initializers.variance_scaling(code_scale**2, "fan_in", "truncated_normal")
        self.code = nnx.Linear(code_dim, width, use_bias=False, kernel_init=code_init, rngs=rngs) if code_dim else None
        last_init = nnx.initializers.zeros_init() if zero_last else nnx.initializers.lecun_normal()
        self.last = nnx.Linear(sizes[-1], features_out, kernel_init=last_init, rngs=rngs)
        self.point_backend = "xla"

    def __call__(
        self, h: Float[Array, "*b n d"], z: Float[Array, "*c z"] | None = None
    ) -> Float[Array, "*o n e"]:
        """Maps features `h`; a code `z` is shared by all n points, and its batch axes broadcast with h's."""
        layers = [*self.hidden, self.last]
        width = self.hidden[0].out_features
        if self.code is None:
            product = jnp.zeros(width, h.dtype)
        else:
            assert z is not None, "this network sees a code"
            product = self.code(z)
        return point_mlp(
            h,
            [layer.kernel[...] for layer in layers],
            [cast(nnx.Param, layer.bias)[...] for layer in layers],
            product,
            backend=self.point_backend if width < WIDE else "xla",
        )


class Encoder(nnx.Module):
    """An image to a code: per width a 3x3 convolution and a strided one, group norm, then an MLP."""

    def __init__(self, code_dim: int, *, image_size: int, widths: Sequence[int], rngs: nnx.Rngs):
        if image_size % 2 ** len(widths):
            raise ValueError(f"encoder image size {image_size} is not a multiple of {2 ** len(widths)}")
        sizes = [3, *widths]
        convolutions, norms = [], []
        for a, b in zip(sizes[:-1], sizes[1:], strict=True):
            for stride, inputs in ((1, a), (2, b)):
                convolutions.append(nnx.Conv(inputs, b, (3, 3), strides=stride, rngs=rngs))
                norms.append(nnx.GroupNorm(b, num_groups=8, rngs=rngs))
        self.convolutions, self.norms = nnx.List(convolutions), nnx.List(norms)
        flat = (image_size // 2 ** len(widths)) ** 2 * widths[-1]
        self.head = nnx.List(
            [nnx.Linear(flat, 2 * code_dim, rngs=rngs), nnx.Linear(2 * code_dim, code_dim, rngs=rngs)]
        )

    def __call__(self, image: Float[Array, "*b s s 3"]) -> Float[Array, "*b z"]:
        batch = image.shape[:-3]
        h = image.reshape(-1, *image.shape[-3:]) * 2.0 - 1.0
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            h = nnx.relu(norm(convolution(h)))
        # Leaky: units of this wide layer that die on all images would silence the code for good.
        h = nnx.leaky_relu(self.head[0](h.reshape(h.shape[0], -1)))
        return self.head[1](h).reshape(*batch, -1)


def space_to_depth(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b i j e"]:
    """Folds patch x patch pixels into channels."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b i j e"]:
    """The inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, patch, patch, c // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * patch, w * patch, c // patch**2)


class UNet(nnx.Module):
    """The refine network: two convolutions down, two up, with skips; feature image to RGB by a sigmoid.

    The output is sigmoid(u + logit(rgb)) where rgb are the input's first three channels and u starts at
    zero: refinement begins as the coarse image and learns what that lacks.
    """

    def __init__(self, *, channels: int, widths: Sequence[int], patch: int, rngs: nnx.Rngs):
        self.patch = patch
        w0, w1, w2 = widths
        kernel = (3, 3) if patch == 1 else (1, 1)  # a folded patch is a neighbourhood already

        def conv(a: int, b: int, size: tuple[int, int] = (3, 3), stride: int = 1) -> nnx.Conv:
            return nnx.Conv(a, b, size, strides=stride, kernel_init=nnx.initializers.he_normal(), rngs=rngs)

        self.enter = conv(channels * patch * patch, w0, kernel)
        self.down1, self.down2 = conv(w0, w1, stride=2), conv(w1, w2, stride=2)
        self.up2, self.up1 = conv(w2 + w1, w1), conv(w1 + w0, w0)
        self.leave = nnx.Conv(
            w0, 3 * patch * patch, (3, 3), kernel_init=nnx.initializers.zeros_init(), rngs=rngs
        )

    def __call__(self, features: Float[Array, "*b h w c"]) -> Float[Array, "*b h w 3"]:
        batch, (height, width, _) = features.shape[:-3], features.shape[-3:]
        multiple = 4 * self.patch
        if height % multiple or width % multiple:
            raise ValueError(f"refine network: image {height}x{width} is not a multiple of {multiple} pixels")
        flat = features.reshape(-1, *features.shape[-3:])
        h0 = nnx.relu(self.enter(space_to_depth(flat, self.patch)))
        h1 = nnx.relu(self.down1(h0))
        h2 = nnx.relu(self.down2(h1))
        h1 = nnx.relu(self.up2(jnp.concatenate([_double(h2), h1], axis=-1)))
        h0 = nnx.relu(self.up1(jnp.concatenate([_double(h1), h0], axis=-1)))
        residual = depth_to_space(self.leave(h0), self.patch)
        # 1/512 off the ends: the logit stays finite and a saturated channel costs under half a grey level.
        rgb = jnp.clip(flat[..., :3], 1 / 512, 1 - 1 / 512)
        image = jax.nn.sigmoid(residual + jnp.log(rgb) - jnp.log1p(-rgb))
        return image.reshape(*batch, height, width, 3)


def _double(x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
    """Nearest-neighbour up-sampling by two, as a broadcast (XLA fuses it; a resize is a gather on CPU)."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class HeadNetworks(nnx.Module):
    """What both head models share, and carry from the guide to the Gaussians."""

    def __init__(self, config: NetworkConfig, *, face_size: int, nonface_size: int, rngs: nnx.Rngs):
        d = config.feature_dim
        point_mlp = functools.partial(MLP, width=config.width, depth=config.depth, rngs=rngs)
        # z_id lies in the unit ball, so that its entries are of order 1 / sqrt(dim): without the factor an
        # identity would hardly be heard beside the point's features, and be learnt as slowly.
        self.injection = MLP(
            d,
            d,
            width=config.width,
            depth=config.injection_depth,
            code_dim=config.identity_dim,
            code_scale=config.identity_dim**0.5,
            rngs=rngs,
        )
        self.injection_residual = config.injection_residual
        self.identity = point_mlp(d, 3, zero_last=True)
        self.expression = point_mlp(d, 3, code_dim=config.expression_dim, zero_last=True)
        self.motion = point_mlp(d, 3, code_dim=config.expression_dim, zero_last=True)
        self.color = point_mlp(d, NUM_CHANNELS)
        widths = config.encoder_widths
        self.expression_encoder = Encoder(
            config.expression_dim, image_size=face_size, widths=widths, rngs=rngs
        )
        self.motion_encoder = Encoder(
            config.expression_dim, image_size=nonface_size, widths=widths, rngs=rngs
        )
        self.refine = UNet(
            channels=NUM_CHANNELS, widths=config.refine_widths, patch=config.refine_patch, rngs=rngs
        )

    def inject(self, features: Float[Array, "m d"], code: Float[Array, "i z"]) -> Float[Array, "i m d"]:
        """H = f_inj(gamma, z_id) (eqs. 2, 5), on top of gamma itself where the config asks for it."""
        h = self.injection(features[None], code)
        return h + features[None] if self.injection_residual else h

    def displacement(
        self,
        features: Float[Array, "i n d"],
        expression_code: Float[Array, "i f z"],
        motion_code: Float[Array, "i f z"],
        weight: Float[Array, "n"],
    ) -> tuple[Float[Array, "i f n 3"], Float[Array, "i f n 3"]]:
        """The expression and non-face displacements after their weights lambda and 1 - lambda (eqs. 3, 7)."""
        h = features[:, None]
        weight = weight[None, None, :, None]
        expression = self.expression(h, expression_code) * weight
        motion = self.motion(h, motion_code) * (1.0 - weight)
        return expression, motion


def use_fused_points(model: nnx.Module, backend: str) -> None:
    """Has every point MLP of a model run on `backend`; for models on one device.

    A bare native call under a `jit` over several devices would gather its inputs.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, MLP):
            module.point_backend = backend


def bounded_code(z: Float[Array, "*b z"]) -> Float[Array, "*b z"]:
    """Projects a code into the unit ball: z / max(1, |z|)."""
    squared = jnp.sum(z**2, axis=-1, keepdims=True)
    return z * jax.lax.rsqrt(jnp.maximum(squared, 1.0))


def expression_weight(
    points: Float[Array, "n 3"], landmarks: Float[Array, "k 3"], near: float, far: float
) -> Float[Array, "n"]:
    """lambda_exp = clamp((far - d) / (far - near), 0, 1), d the distance to the nearest landmark (HHAvatar).

    Canonical space, head lengths. No gradient reaches the landmarks or the points.
    """
    points, landmarks = jax.lax.stop_gradient((points, landmarks))
    squared = jnp.sum((points[:, None] - landmarks[None]) ** 2, axis=-1)
    return jnp.clip((far - jnp.sqrt(jnp.min(squared, axis=-1))) / (far - near), 0.0, 1.0)
