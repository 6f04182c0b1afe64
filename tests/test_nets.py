"""The networks: code products, bounds, regions and invertible rearrangements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gphm_jax import nets


def test_code_product_equals_concatenation():
    mlp = nets.MLP(5, 3, width=7, depth=2, code_dim=4, rngs=nnx.Rngs(0))
    h = jax.random.normal(jax.random.key(0), (2, 1, 6, 5))
    z = jax.random.normal(jax.random.key(1), (2, 3, 4))
    ours = mlp(h, z)
    assert ours.shape == (2, 3, 6, 3)
    weight = jnp.concatenate([mlp.hidden[0].kernel[...], mlp.code.kernel[...]])
    tiled = jnp.concatenate(
        [jnp.broadcast_to(h, (2, 3, 6, 5)), jnp.broadcast_to(z[:, :, None], (2, 3, 6, 4))], axis=-1
    )
    x = nnx.relu(tiled @ weight + mlp.hidden[0].bias[...][None, None, None])
    np.testing.assert_allclose(ours, mlp.last(nnx.relu(mlp.hidden[1](x))), rtol=2e-5, atol=2e-6)


def test_positional_encoding_holds_x_and_octaves():
    x = jnp.array([[0.25, -0.5, 1.0]])
    encoded = nets.positional_encoding(x, 2)
    expected = [0.25, -0.5, 1.0]
    for f in (np.sin, np.cos):
        expected += [f(np.pi * v) for v in (0.25, -0.5, 1.0)] + [f(2 * np.pi * v) for v in (0.25, -0.5, 1.0)]
    np.testing.assert_allclose(encoded[0], expected, atol=1e-6)


def test_space_to_depth_inverts():
    x = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    folded = nets.space_to_depth(x, 2)
    assert folded.shape == (2, 4, 6, 12)
    np.testing.assert_array_equal(nets.depth_to_space(folded, 2), x)


@pytest.mark.parametrize("patch", [1, 2])
def test_refinement_starts_as_the_coarse_image(patch):
    net = nets.UNet(channels=8, widths=(4, 4, 4), patch=patch, rngs=nnx.Rngs(0))
    x = jax.random.uniform(jax.random.key(0), (3, 16, 16, 8), minval=0.05, maxval=0.95)
    np.testing.assert_allclose(net(x), x[..., :3], atol=1e-5)
    with pytest.raises(ValueError, match="not a multiple"):
        net(x[:, :6])


def test_encoder_maps_any_leading_axes():
    encoder = nets.Encoder(6, image_size=32, widths=(8, 8, 8, 16), rngs=nnx.Rngs(0))
    x = jax.random.uniform(jax.random.key(0), (2, 3, 32, 32, 3))
    codes = encoder(x)
    assert codes.shape == (2, 3, 6)
    np.testing.assert_allclose(codes[1, 2], encoder(x[1, 2]), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="multiple"):
        nets.Encoder(6, image_size=40, widths=(8, 8, 8, 16), rngs=nnx.Rngs(0))


def test_codes_stay_in_the_unit_ball():
    z = jnp.array([[3.0, 4.0], [0.3, 0.4]])
    np.testing.assert_allclose(nets.bounded_code(z), [[0.6, 0.8], [0.3, 0.4]], rtol=1e-6)


def test_expression_weight_falls_between_near_and_far():
    landmarks = jnp.zeros((1, 3))
    points = jnp.array([[0.1, 0, 0], [0.2, 0, 0], [0.3, 0, 0]])
    np.testing.assert_allclose(
        nets.expression_weight(points, landmarks, 0.15, 0.25), [1.0, 0.5, 0.0], atol=1e-5
    )
    gradient = jax.grad(lambda p: jnp.sum(nets.expression_weight(points, p, 0.15, 0.25)))(landmarks)
    np.testing.assert_array_equal(gradient, 0.0)


def test_fused_points_change_nothing_but_speed():
    mlp = nets.MLP(5, 3, width=7, depth=2, code_dim=4, rngs=nnx.Rngs(0))
    h = jax.random.normal(jax.random.key(0), (2, 1, 6, 5))
    z = jax.random.normal(jax.random.key(1), (2, 3, 4))
    plain = jax.jit(lambda: mlp(h, z))()
    nets.use_fused_points(mlp, "auto")
    assert mlp.point_backend == "auto"
    assert float(jnp.abs(plain).max()) > 0.1
    np.testing.assert_allclose(jax.jit(lambda: mlp(h, z))(), plain, rtol=1e-5, atol=1e-6)
