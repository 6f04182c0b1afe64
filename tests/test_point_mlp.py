"""The fused point MLP: against NumPy, plain JAX and finite differences, for any sizes, threads and mesh."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gphm_kernels import point_mlp
from gphm_kernels.backends import native

ARRAYS = ("features", "kernels", "biases", "first_bias")


def make_network(sizes, features=(), codes=(), n=50, dtype=np.float32, seed=0):
    """Random arguments of `point_mlp`: the leading dimensions of the features and of the codes, and n points."""
    random = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(random.standard_normal(shape), dtype)

    layers = list(zip(sizes[:-1], sizes[1:], strict=True))
    return {
        "features": draw(*features, n, sizes[0]),
        "kernels": tuple(draw(a, b) * dtype((2 / a) ** 0.5) for a, b in layers),
        "biases": tuple(draw(b) for _, b in layers),
        "first_bias": draw(*codes, sizes[1]),
    }


def evaluate_slowly(network):
    """The network in NumPy and float64, the features repeated in memory."""
    hidden, *kernels = (np.asarray(x, np.float64) for x in (network["features"], *network["kernels"]))
    for layer, (kernel, bias) in enumerate(zip(kernels, network["biases"], strict=True)):
        hidden = hidden @ kernel + np.asarray(bias)
        if layer == 0:
            hidden = hidden + np.asarray(network["first_bias"])[..., None, :]
        if layer + 1 < len(kernels):
            hidden = np.maximum(hidden, 0)
    return hidden


def gradients(network, backend):
    """The result and the gradients of its product with fixed random weights."""

    def loss(network):
        result = point_mlp(**network, backend=backend)
        weights = np.random.default_rng(1).standard_normal(result.shape).astype(result.dtype)
        return jnp.sum(result * weights), result

    (_, result), d_network = jax.jit(jax.value_and_grad(loss, has_aux=True))(network)
    return result, d_network


def assert_close(actual, expected):
    expected = np.asarray(expected)
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * scale)


def assert_same_gradients(actual, expected):
    for name in ARRAYS:
        pairs = zip(jax.tree.leaves(actual[name]), jax.tree.leaves(expected[name]), strict=True)
        for a, e in ((np.asarray(a, np.float64), np.asarray(e, np.float64)) for a, e in pairs):
            assert np.abs(e).max() > 1e-3, name
            np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4 * np.abs(e).max(), err_msg=name)
            assert np.sum(a * e) / np.sqrt(np.sum(a * a) * np.sum(e * e)) >= 0.9999, name


NETWORKS = [  # widths, leading dimensions of features and codes, points
    ((64, 64, 64, 64, 64, 3), (2, 1), (2, 3), 101),
    ((5, 33, 70, 7), (2,), (2,), 500),
    ((33, 64, 3), (), (3, 2), 1),
    ((64, 33), (2, 1), (1, 2), 49),  # one layer: no ReLU; codes repeated over the first axis
    ((3, 5, 130, 1), (1, 2), (3, 1), 48),  # features repeated before an axis that is not
    ((1, 1, 1), (4,), (), 6),
]


@pytest.mark.parametrize("shape", NETWORKS)
def test_matches_numpy_and_plain_jax(shape):
    network = make_network(*shape)
    plain, d_plain = gradients(network, "xla")
    assert_close(plain, evaluate_slowly(network))
    for backend in ("native", "callback"):
        result, d_network = gradients(network, backend)
        assert_close(result, evaluate_slowly(network))
        assert_close(result, plain)
        assert_same_gradients(d_network, d_plain)


@pytest.mark.parametrize("shape", NETWORKS[:2])
def test_instruction_sets_agree(shape):
    network = make_network(*shape)
    sizes = tuple(shape[0])
    parameters = jnp.concatenate(
        [x.reshape(-1) for layer in zip(network["kernels"], network["biases"], strict=True) for x in layer]
    )
    features = network["features"].reshape(2, -1, sizes[0])
    arrays = features, parameters, network["first_bias"].reshape(2, -1, sizes[1])
    expected = evaluate_slowly(network)
    runs = []
    for isa in native.instruction_sets():
        result = native.mlp_fwd(*arrays, sizes=sizes, isa=isa)
        assert_close(result.reshape(expected.shape), expected)
        runs.append(native.mlp_bwd(*arrays, jnp.ones_like(result), sizes=sizes, isa=isa))
    for run in runs[1:]:
        for first, other in zip(runs[0], run, strict=True):
            np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-4 * np.abs(first).max())


def test_finite_differences(float64):
    network = make_network((4, 9, 6, 2), (2, 1), (2, 3), n=7, dtype=np.float64)
    weights = np.random.default_rng(2).standard_normal((2, 3, 7, 2))

    @jax.jit
    def loss(network):
        return jnp.sum(point_mlp(**network) * weights)

    direction = make_network((4, 9, 6, 2), (2, 1), (2, 3), n=7, dtype=np.float64, seed=3)
    d_network = jax.grad(loss)(network)
    step = 1e-7  # small enough that no ReLU opens or closes on the way
    for name in ARRAYS:
        moved = [
            loss({**network, name: jax.tree.map(lambda x, d, s=s: x + s * d, network[name], direction[name])})
            for s in (-step, step)
        ]
        slopes = jax.tree.map(lambda a, b: jnp.sum(a * b), d_network[name], direction[name])
        expected = (moved[1] - moved[0]) / (2 * step)
        assert abs(expected) > 0.1, name
        np.testing.assert_allclose(sum(jax.tree.leaves(slopes)), expected, rtol=1e-6, err_msg=name)


def test_same_bits_for_any_number_of_threads():
    random = np.random.default_rng(4)
    sizes, n = (33, 64, 20, 3), 3000
    number = sum((a + 1) * b for a, b in zip(sizes[:-1], sizes[1:], strict=True))
    shapes = (2, n, 33), (number,), (2, 2, 64), (2, 2, n, 3)
    *arrays, d_result = (jnp.asarray(0.3 * random.standard_normal(shape), jnp.float32) for shape in shapes)
    runs = []
    for threads in (1, 2, 3, 7, 0):
        result = native.mlp_fwd(*arrays, sizes=sizes, num_threads=threads)
        d_arrays = native.mlp_bwd(*arrays, d_result, sizes=sizes, num_threads=threads)
        runs.append([np.asarray(x) for x in (result, *d_arrays)])
    assert all(np.abs(x).max() > 0 for x in runs[0])
    for run in runs[1:]:
        for first, other in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("backend", ["xla", "native"])
def test_no_points(backend):
    network = make_network((5, 8, 3), (2, 1), (2, 3), n=0)
    result, d_network = gradients(network, backend)
    assert result.shape == (2, 3, 0, 3)
    jax.tree.map(lambda d, x: np.testing.assert_array_equal(d, np.zeros_like(x)), d_network, network)


def test_values_that_are_not_finite_stay_in_their_rows():
    network = make_network((5, 16, 16, 3), n=100)
    network["features"] = network["features"].at[7, 2].set(jnp.nan)
    result = np.asarray(point_mlp(**network, backend="native"))
    assert np.isnan(result[7]).all() and np.isfinite(np.delete(result, 7, 0)).all()


@pytest.mark.parametrize("backend", ["xla", "auto"])
def test_gradient_of_replicated_parameters_under_shard_map(backend):
    assert native.available(), native.reason()  # "auto" is "xla" otherwise
    devices = jax.device_count()
    assert devices == 8
    network = make_network((5, 33, 16, 3), (devices, 1), (devices, 2), n=60)
    weights = jnp.asarray(np.random.default_rng(5).standard_normal((devices, 2, 60, 3)), jnp.float32)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    divided, whole = PartitionSpec("data"), PartitionSpec()

    def local(network, weights):
        return jnp.sum(point_mlp(**network, backend=backend) * weights, (1, 2, 3))

    specs = {"features": divided, "kernels": whole, "biases": whole, "first_bias": divided}
    sharded = jax.shard_map(local, mesh=mesh, in_specs=(specs, divided), out_specs=divided, check_vma=True)
    d_sharded = jax.jit(jax.grad(lambda network: sharded(network, weights).sum()))(network)
    d_single = jax.jit(jax.grad(lambda network: local(network, weights).sum()))(network)
    assert_same_gradients(d_sharded, d_single)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((2, 50, 6), np.float32)}, r"layer 0 has a kernel of shape \(5, 8\).*\[6, m\]"),
        ({"features": np.zeros(5, np.float32)}, r"must end in \[n, d\]"),
        ({"biases": (np.zeros(8, np.float32), np.zeros(8, np.float32))}, r"layer 1 .* bias of shape \(8,\)"),
        ({"biases": (np.zeros(8, np.float32),)}, "2 kernels and 1 biases"),
        ({"kernels": (), "biases": ()}, "0 kernels"),
        ({"first_bias": np.zeros((2, 7), np.float32)}, r"first_bias has shape \(2, 7\).*width, 8"),
        ({"first_bias": np.zeros((3, 8), np.float32)}, "do not broadcast"),
        ({"backend": "cuda"}, "backend='cuda'.*'xla'"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    unchecked = inspect.unwrap(point_mlp)  # without the tests' own shape checks, which would come first
    arguments = {**make_network((5, 8, 3), (2,), (2,)), **change}
    with pytest.raises(ValueError, match=message):
        unchecked(**arguments)


def test_native_backends_refuse_float64(float64):
    with pytest.raises(ValueError, match="float64"):
        point_mlp(**make_network((5, 8, 3), dtype=np.float64), backend="native")
