"""Warnings about slower code than there could be: once each, and for GPUs only where a program is made for one.

Which platform a program runs on is known when it is lowered. An operation that computes nothing carries the message
until then; asking JAX for its devices would start them.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
from absl import logging
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


@lru_cache
def warn_once(message: str) -> None:
    """Logs a warning the first time that it is given."""
    logging.warning("%s", message)


def on_cuda(function: Callable[..., Any], message: str) -> Callable[..., Any]:
    """The function, which warns once when it is lowered for CUDA. Its first argument is an array."""

    def noticed(first: Any, *arrays: Any, **options: Any) -> Any:
        return function(_notice.bind(first, message=message), *arrays, **options)

    return noticed


def _lower_for_cuda(context: Any, value: Any, *, message: str) -> list[Any]:
    warn_once(message)
    return [value]


@partial(jax.jit, static_argnums=1)
def _compiled(value: Any, message: str) -> Any:
    return _notice.bind(value, message=message)


_notice = Primitive("gphm_notice")  # without derivatives: it stands inside of a `custom_vjp`
_notice.def_abstract_eval(lambda value, *, message: value)
_notice.def_impl(lambda value, *, message: _compiled(value, message))
batching.defvectorized(_notice)
mlir.register_lowering(_notice, lambda context, value, *, message: [value])
mlir.register_lowering(_notice, _lower_for_cuda, platform="cuda")
