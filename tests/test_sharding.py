"""One step on eight devices gives one device's loss and gradients, and gathers neither images nor points."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gphm_jax import sharding
from gphm_jax.errors import InputError
from gphm_jax.sharding import batch_sharding, device_mesh, state_sharding
from gphm_jax.state import create_state
from gphm_jax.step import LossWeights, StepContext, compile_step, gaussian_losses, guide_losses, make_step
from tests import tiny_models

WEIGHTS = LossWeights(silhouette=0.1, laplacian=1.0, perceptual=0.0, face_gain=2.0)
CASES = {
    "stage1": (
        lambda: tiny_models.guide_model(identities=8, frames=8, sdf_steps=50),
        guide_losses,
        {"frames": 1, "views": 2},
    ),
    "stage2": (lambda: tiny_models.gaussian_model(identities=8, frames=16), gaussian_losses, {"frames": 2}),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    build, loss, sizes = CASES[request.param]
    model, batch = build(), tiny_models.batch(identities=8, **sizes)
    return model, loss, batch, gradients_and_scalars(model, loss, batch, None)


def gradients_and_scalars(model, loss, batch, devices):
    """One step, whose optimizer keeps the gradient in its state: momentum of decay zero."""
    optimizer = optax.sgd(1.0, momentum=0.0)
    graphdef, state = create_state(model, optimizer)
    state = jax.tree.map(jnp.copy, state)  # the step donates its input, and the model is used again
    context = StepContext(weights=WEIGHTS, devices=devices)
    step = make_step(graphdef, optimizer, loss, context, seed=0)
    if devices is not None:
        state = jax.device_put(state, state_sharding(devices, state))
        batch = jax.device_put(batch, batch_sharding(devices))
    compiled = compile_step(step, state, devices).lower(state, batch, None).compile()
    after, scalars = compiled(state, batch, None)
    return jax.device_get(after.optimizer[0].trace), jax.device_get(scalars), compiled.as_text()


def gathered_types(program):
    """The result type of each all-gather: a tuple where gathers are combined, or run beside other work (`-start`)."""
    return re.findall(r"= (.*?) all-gather(?:-start)?\(", program)


def test_gathers_are_found_in_every_form():
    program = """
      %all-gather.1 = f32[8,2,16,16]{3,2,1,0} all-gather(%p), dimensions={0}
      %all-gather-start = (f32[1,2]{1,0}, f32[8,2]{1,0}) all-gather-start(%q), dimensions={0}
      %all-gather-done = f32[8,2]{1,0} all-gather-done(%all-gather-start)
      ROOT %copy = f32[8,2]{1,0} copy(%all-gather-done)
    """
    assert gathered_types(program) == ["f32[8,2,16,16]{3,2,1,0}", "(f32[1,2]{1,0}, f32[8,2]{1,0})"]


@pytest.mark.parametrize("fsdp", [1, 2])
def test_eight_devices_equal_one(case, fsdp, monkeypatch):
    # Or no weight of these small networks would be divided; now all but the smallest are.
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 64)
    model, loss, batch, (alone, scalars, text) = case
    assert "all-gather" not in text
    divided, divided_scalars, text = gradients_and_scalars(model, loss, batch, device_mesh(fsdp))
    np.testing.assert_allclose(divided_scalars["loss"], scalars["loss"], rtol=1e-5)
    pairs = zip(jax.tree.leaves(alone), jax.tree.leaves(divided), strict=True)
    moved = 0
    for (path, _), (a, b) in zip(jax.tree_util.tree_leaves_with_path(alone), pairs, strict=True):
        scale = np.abs(a).max()
        moved += scale > 0
        assert np.abs(a - b).max() <= 1e-5 * max(scale, 1e-2), jax.tree_util.keystr(path)
    assert moved > 20
    size = batch.image.shape[-2]
    gathered = gathered_types(text)
    assert fsdp == 1 or gathered  # divided weights are gathered: had the pattern grown stale, it would show here
    # With a dimension before the picture's: a square weight is no picture.
    pictures = [shape for shape in gathered if re.search(rf",{size},{size}[,\]]", shape)]
    assert not pictures, pictures
    points = getattr(model, "positions", None)
    if points is not None:
        assert not [shape for shape in gathered if re.search(rf"[\[,]{points.shape[0]}[,\]]", shape)]


def test_device_mesh_wants_a_divisor():
    assert device_mesh(4).shape == {"data": 2, "fsdp": 4}
    with pytest.raises(InputError, match="fsdp=3 does not divide"):
        device_mesh(3)


def test_points_are_replicated_and_weights_divided():
    mesh = device_mesh(8)
    state = {
        "networks": {"color": {"kernel": jnp.zeros((128, 64))}},
        "features": jnp.zeros((4096, 64)),
        "subjects": {"codes": jnp.zeros((80, 512))},
    }
    placed = state_sharding(mesh, state)
    assert placed["networks"]["color"]["kernel"].spec == jax.sharding.PartitionSpec("fsdp")
    assert placed["features"].spec == jax.sharding.PartitionSpec()
    assert placed["subjects"]["codes"].spec == jax.sharding.PartitionSpec(None, "fsdp")
