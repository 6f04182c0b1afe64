"""Triton's interpreter as a launcher: the GPU kernels on NumPy arrays, in a process of its own.

Triton decides at its import whether kernels are interpreted, and the tests' shape checks would wrap the kernels'
source; a worker process does both right.
"""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Sequence

import jax
import numpy as np


class Tensor:
    """As much of a tensor as the interpreter asks for: an address and a type. It is its own storage, on the host."""

    def __init__(self, array: np.ndarray):
        assert array.flags.c_contiguous
        self.array, self.dtype, self.shape = array, str(array.dtype), array.shape

    def data_ptr(self):
        return self.array.ctypes.data

    def untyped_storage(self):
        return self

    def cpu(self):
        return self

    def new_empty(self, *_, **__):
        return Tensor(self.array)

    def set_(self, storage, *_):
        self.__init__(storage.array)

    def storage_offset(self):
        return 0

    def size(self):
        return self.shape

    def stride(self):
        return tuple(step // self.array.itemsize for step in self.array.strides)

    def copy_(self, _):
        pass


def _begin():
    os.environ["TRITON_INTERPRET"] = "1"


def _interpret(
    name: str,
    inputs: Sequence[np.ndarray],
    outputs: Sequence[np.ndarray],
    sizes: Sequence[int],
    grid: tuple[int, ...],
    backwards: bool,
) -> list[np.ndarray]:
    """Runs one launch, its programs in order or the last one first."""
    from triton.runtime.interpreter import interpreter_builder

    from gphm_kernels.triton import launches

    def set_program(*index: int) -> None:
        shape = interpreter_builder.grid_dim
        mirrored = tuple(n - 1 - i for n, i in zip(shape, index, strict=True))
        interpreter_builder.grid_idx = mirrored if backwards else index

    interpreter_builder.set_grid_idx = set_program
    kernel = launches.KERNELS[name]
    results = [np.array(x) for x in outputs]
    pointers = [Tensor(np.ascontiguousarray(x)) for x in inputs] + [Tensor(x) for x in results]
    types = {"*fp32": "float32", "*i32": "int32", "*i8": "int8"}
    assert [types[t] for t in kernel.pointers] == [p.dtype for p in pointers], name
    assert len(sizes) == len(kernel.sizes), name
    kernel.load()[grid](*pointers, *sizes, **kernel.constants)
    return results


class Interpreter:
    """A worker process; `launch` gives it to the modules of `gphm_kernels.triton`."""

    def __enter__(self):
        context = multiprocessing.get_context("spawn")
        self._pool = concurrent.futures.ProcessPoolExecutor(1, context, initializer=_begin)
        self.launched, self.backwards = [], False
        return self

    def __exit__(self, *_):
        self._pool.shutdown()

    def launch(self, launch):
        """A `gphm_kernels.triton.launches.Launcher`."""

        def run(inputs, outputs):
            arrays = [np.asarray(x) for x in inputs], [np.asarray(x) for x in outputs]
            self.launched.append(launch.kernel)
            call = launch.kernel, *arrays, launch.sizes, launch.grid, self.backwards
            return tuple(self._pool.submit(_interpret, *call).result())

        results = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in launch.outputs)
        return jax.pure_callback(run, results, launch.inputs, launch.outputs)
