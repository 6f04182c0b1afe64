"""The train state, and its checkpoints on disk (Orbax)."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import Array, Int

from gphm_jax.errors import InputError
from gphm_jax.types import pytree


@pytree
class TrainState:
    """All that changes from step to step, and what is stored beside it."""

    step: Int[Array, ""]
    params: Any  # nnx.State of nnx.Param
    fixed: Any  # nnx.State of everything else
    optimizer: Any


def split_model(model: nnx.Module) -> tuple[Any, Any, Any]:
    """(graph definition, trainable parameters, fixed state) of a module."""
    graphdef, params, fixed = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]  # the stubs lose the count
    return graphdef, params, fixed


def create_state(model: nnx.Module, optimizer: Any) -> tuple[Any, TrainState]:
    """The graph definition and step 0's state of a model."""
    graphdef, params, fixed = split_model(model)
    return graphdef, TrainState(
        step=jnp.zeros((), jnp.int32), params=params, fixed=fixed, optimizer=optimizer.init(params)
    )


class Checkpoints:
    """Numbered checkpoints of one stage: the model, its optimizer, and a JSON description to rebuild it from."""

    def __init__(self, directory: pathlib.Path, *, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(
            directory.absolute(), item_names=("model", "optimizer", "meta"), options=options
        )

    def latest(self) -> int | None:
        """The last complete checkpoint's step."""
        return self._manager.latest_step()

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Writes in the background; a checkpoint appears under its name only when complete."""
        step = int(state.step)
        if step == self.latest():
            return
        # The write goes on in the background while the next step reuses (donates) these very buffers.
        state = jax.tree.map(jnp.copy, state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave((state.params, state.fixed)),
                optimizer=ocp.args.StandardSave((state.step, state.optimizer)),
                meta=ocp.args.JsonSave(meta),
            ),
        )

    def meta(self) -> dict[str, Any]:
        """The last checkpoint's description."""
        return self._restore(meta=ocp.args.JsonRestore())["meta"]

    def restore_model(self, params: Any, fixed: Any) -> tuple[Any, Any]:
        """The last checkpoint's model alone, in the shapes and dtypes given."""
        wanted = abstract_like((params, fixed))
        return tuple(self._restore(model=ocp.args.StandardRestore(wanted))["model"])

    def restore(self, abstract: TrainState) -> TrainState:
        """The last checkpoint's whole state, in the shapes, dtypes and shardings of `abstract`."""
        items = self._restore(
            model=ocp.args.StandardRestore((abstract.params, abstract.fixed)),
            optimizer=ocp.args.StandardRestore((abstract.step, abstract.optimizer)),
        )
        params, fixed = items["model"]
        step, optimizer = items["optimizer"]
        return TrainState(step=step, params=params, fixed=fixed, optimizer=optimizer)

    def close(self) -> None:
        """Waits for the writes in flight."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _restore(self, **items: Any) -> Any:
        step = self.latest()
        if step is None:
            raise InputError(
                f"no checkpoint in {self._manager.directory}: train it first, or name another workdir"
            )
        return self._manager.restore(step, args=ocp.args.Composite(**items))


def abstract_like(state: Any, shardings: Any | None = None) -> Any:
    """Shapes, dtypes and (if given) shardings of a state, for `Checkpoints.restore`."""
    if shardings is None:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
