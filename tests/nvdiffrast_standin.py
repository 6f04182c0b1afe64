"""Stand-ins for `torch` and `nvdiffrast.torch`: their calls, checks and conventions, on NumPy arrays.

As much as `gphm_kernels.backends.nvdiffrast` uses, from the public documentation: signatures, the order of rows (the
first is at y/w = -1), shapes, and which outputs have gradients (z/w has none). What would be an error there, or reach
beyond an array, is an error here. The numbers are the native CPU library's, by its C functions, which run no JAX.
"""

import itertools
import sys
import threading
import types
from collections.abc import Callable

import jax
import numpy as np

from gphm_kernels.backends import callback

VERSION = "0.4.0"


class Tensor:
    """An array on a device, and how it was made."""

    _numbers = itertools.count()

    def __init__(self, data: np.ndarray, device: str):
        self.data, self.device, self.requires_grad = data, device, False
        self.sources: tuple[Tensor, ...] = ()
        self.pullback: Callable | None = None
        self.number = next(Tensor._numbers)

    def requires_grad_(self):
        assert self.data.dtype == np.float32, "only Tensors of floating point dtype can require gradients"
        self.requires_grad = True
        return self

    def detach(self):
        return Tensor(self.data, self.device)

    def cpu(self):
        assert not self.requires_grad, "detach it first"
        return Tensor(self.data, "cpu")

    def numpy(self):
        assert self.device == "cpu", f"can't convert {self.device} device type tensor to numpy"
        assert not self.requires_grad, "can't call numpy() on Tensor that requires grad"
        return self.data


def tensor(data, *, device="cpu"):
    assert type(data) is np.ndarray  # a JAX array would be work for JAX inside a callback
    return Tensor(data.copy(), device)


def grad(outputs, inputs, grad_outputs):
    """Gradients by walking back from the youngest tensor."""
    sums, waiting = {}, {}

    def add(to: Tensor, value: np.ndarray):
        assert value.shape == to.data.shape and value.dtype == to.data.dtype
        sums[to.number] = sums.get(to.number, 0) + value
        waiting[to.number] = to

    for output, cotangent in zip(outputs, grad_outputs, strict=True):
        assert output.requires_grad, "element of tensors does not require grad and does not have a grad_fn"
        assert cotangent.device == output.device
        add(output, cotangent.data)
    while waiting:
        youngest = waiting.pop(max(waiting))
        if youngest.pullback:
            for source, value in zip(youngest.sources, youngest.pullback(sums[youngest.number]), strict=True):
                if source.requires_grad:
                    add(source, value)
    assert all(x.number in sums for x in inputs), "a differentiated Tensor was not used in the graph"
    return tuple(Tensor(sums[x.number], x.device) for x in inputs)


class RasterizeCudaContext:
    devices: list[str] = []  # of the contexts made since `install`

    def __init__(self, device=None):
        RasterizeCudaContext.devices.append(device)
        self.device, self.thread = device, threading.get_ident()


def rasterize(glctx, pos, tri, resolution, ranges=None, grad_db=True):
    assert isinstance(glctx, RasterizeCudaContext) and ranges is None
    assert glctx.thread == threading.get_ident(), "a context belongs to one thread"
    height, width = resolution
    _check_mesh(pos, tri)
    assert glctx.device == pos.device and pos.data.ndim == 3
    sizes = (*pos.data.shape[:2], len(tri.data), width, height)
    shape = (len(pos.data), height, width, 4)
    (raster,) = _native("rasterize_fwd", sizes, [shape], pos.data, tri.data)

    def pullback(d_rast):
        d_raster = np.flip(d_rast, 1) * np.array([1, 1, 0, 0], np.float32)  # of z/w there is none
        return _native("rasterize_bwd", sizes, [pos.data.shape], pos.data, tri.data, raster, d_raster)

    rast_db = Tensor(np.zeros(shape, np.float32), pos.device)
    return _result(np.flip(raster, 1), (pos,), pullback), rast_db


def interpolate(attr, rast, tri, rast_db=None, diff_attrs=None):
    assert rast_db is None and diff_attrs is None
    _check(attr, np.float32, 3)
    _check_raster(rast, tri, attr)
    _check_indices(tri, attr.data.shape[1])
    assert attr.device == rast.device == tri.device
    batch, vertices, channels = attr.data.shape
    height, width = rast.data.shape[1:3]
    sizes = batch, vertices, channels, len(tri.data), width, height
    inputs, shape = (attr.data, rast.data, tri.data), (batch, height, width, channels)
    (image,) = _native("interpolate_fwd", sizes, [shape], *inputs)

    def pullback(d_image):
        return _native("interpolate_bwd", sizes, [attr.data.shape, rast.data.shape], *inputs, d_image)

    out_da = Tensor(np.zeros((*shape[:3], 0), np.float32), attr.device)
    return _result(image, (attr, rast), pullback), out_da


def antialias(color, rast, pos, tri, topology_hash=None, pos_gradient_boost=1.0):
    assert topology_hash is None and pos_gradient_boost == 1
    _check(color, np.float32, 4)
    _check_raster(rast, tri, color)
    _check_mesh(pos, tri)
    assert np.all(_corners_apart(tri.data) != 2), "a triangle of two corners is the neighbour of the faces there"
    assert color.device == rast.device == pos.device and len(pos.data) == len(color.data)
    assert color.data.shape[:3] == rast.data.shape[:3]
    batch, height, width, channels = color.data.shape
    sizes = batch, pos.data.shape[1], channels, len(tri.data), width, height
    inputs = np.flip(color.data, 1), np.flip(rast.data, 1), pos.data, tri.data
    (image,) = _native("antialias_fwd", sizes, [color.data.shape], *inputs)

    def pullback(d_out):
        shapes = [color.data.shape, pos.data.shape]
        d_color, d_pos = _native("antialias_bwd", sizes, shapes, *inputs, np.flip(d_out, 1))
        return np.flip(d_color, 1), d_pos

    return _result(np.flip(image, 1), (color, pos), pullback)


def _check(values: Tensor, dtype, rank: int):
    assert values.device.startswith("cuda:"), "Inputs must reside on GPU"
    assert values.data.dtype == dtype and values.data.flags.c_contiguous, "must be contiguous float32/int32 tensors"
    assert values.data.ndim == rank and values.data.size > 0, "must have shape [>0, ...]"


def _check_mesh(pos: Tensor, tri: Tensor):
    _check(pos, np.float32, 3)
    assert pos.data.shape[2] == 4 and pos.device == tri.device
    assert np.all(np.isfinite(pos.data)), "not an error there, but nobody says what becomes of it"
    _check_indices(tri, pos.data.shape[1])


def _check_indices(tri: Tensor, vertices: int):
    _check(tri, np.int32, 2)
    assert tri.data.shape[1] == 3
    assert tri.data.min() >= 0 and tri.data.max() < vertices, "reads beyond the array"


def _corners_apart(triangles: np.ndarray) -> np.ndarray:
    """How many corners of a triangle differ from the one before: none, two or all three."""
    return np.sum(triangles != np.roll(triangles, 1, -1), -1)


def _check_raster(rast: Tensor, tri: Tensor, other: Tensor):
    _check(rast, np.float32, 4)
    assert rast.data.shape[3] == 4 and len(rast.data) == len(other.data)
    index = rast.data[..., 3]
    assert np.all((index == np.floor(index)) & (index >= 0) & (index <= len(tri.data))), "reads beyond the array"


def _result(data: np.ndarray, sources: tuple[Tensor, ...], pullback) -> Tensor:
    result = Tensor(np.ascontiguousarray(data), sources[0].device)
    if any(x.requires_grad for x in sources):
        result.requires_grad, result.sources, result.pullback = True, sources, pullback
    return result


def _native(name: str, sizes, shapes, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
    results = tuple(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)
    return callback._run(name, np.array(sizes, np.int64), results, *inputs)


def install(monkeypatch, folder, *, version: str = VERSION, cuda: bool = True):
    """Makes both packages importable for one test; `folder` is put on the path and holds nvdiffrast's version."""
    RasterizeCudaContext.devices = []
    torch = types.ModuleType("torch")
    torch.__version__, torch.Tensor, torch.tensor = "2.9.1", Tensor, tensor
    torch.autograd = types.SimpleNamespace(grad=grad)
    torch.cuda = types.SimpleNamespace(is_available=lambda: cuda, current_device=lambda: 1)
    package, ops = types.ModuleType("nvdiffrast"), types.ModuleType("nvdiffrast.torch")
    package.torch = ops
    for item in (RasterizeCudaContext, rasterize, interpolate, antialias):
        setattr(ops, item.__name__, item)
    for module in (torch, package, ops):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    described = folder / f"nvdiffrast-{version}.dist-info" / "METADATA"
    described.parent.mkdir()
    described.write_text(f"Metadata-Version: 2.1\nName: nvdiffrast\nVersion: {version}\n")
    monkeypatch.syspath_prepend(folder)
