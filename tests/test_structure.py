"""Which module may import which: the one-way flow of data, read from the sources."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODELS = {"nets", "guide", "gaussians", "avatar_model", "avatar"}
STATEFUL = MODELS | {"optim", "state", "step", "sharding", "render"}


def imported(source: str, package: str) -> set[str]:
    """Dotted names of every module a source imports anywhere; `from a import b` counts as `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def breaches(module: str, names: set[str]) -> list[str]:
    """The rules that a module with these imports breaks."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else ""
    project = {part.split(".")[1] for part in names if part.startswith("gphm_jax.")}
    kernels = any(part.split(".")[0] == "gphm_kernels" for part in names)
    outside = {part.split(".")[0] for part in names}
    found = []
    if parts[0] == "gphm_kernels":
        if "gphm_jax" in outside or "configs" in outside:
            found.append("the kernels know nothing of heads")
        return found
    if name == "types" and (project or kernels):
        found.append("types imports nothing of the project")
    if name == "geometry" and (project - {"types"} or kernels):
        found.append("geometry imports types alone")
    if name == "losses" and (
        project & (STATEFUL | {"config", "data"}) or {"flax", "ml_collections", "configs"} & outside
    ):
        found.append("losses see neither parameters nor config")
    if name == "data" and (project & (STATEFUL | {"losses"}) or "flax" in outside):
        found.append("data never imports a model")
    if kernels and name not in ("render", "guide", "nets", "tools"):
        found.append("only render, guide, nets and tools import the kernels")
    return found


def sources() -> dict[str, tuple[str, pathlib.Path]]:
    """Module name -> (package, path) of every module of both packages."""
    found = {}
    for top in (ROOT / "gphm_jax", ROOT / "kernels" / "gphm_kernels"):
        for path in sorted(top.rglob("*.py")):
            parts = list(path.relative_to(top.parent).with_suffix("").parts)
            is_package = parts[-1] == "__init__"
            module = ".".join(parts[:-1] if is_package else parts)
            package = module if is_package else ".".join(parts[:-1])
            found[module] = (package, path)
    return found


def test_data_flows_one_way():
    modules = sources()
    assert {"gphm_jax.types", "gphm_jax.geometry", "gphm_jax.data"} <= set(modules)
    assert any(module.startswith("gphm_kernels.") for module in modules)
    broken = {
        module: breaches(module, imported(path.read_text(), package))
        for module, (package, path) in modules.items()
    }
    assert not {module: rules for module, rules in broken.items() if rules}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gphm_jax.types", "from gphm_jax import geometry"),
        ("gphm_jax.geometry", "import gphm_jax.errors"),
        ("gphm_jax.losses", "from flax import nnx"),
        ("gphm_jax.losses", "def f():\n    from .state import TrainState"),
        ("gphm_jax.data.records", "from ..guide import Guide"),
        ("gphm_jax.step", "from gphm_kernels import splat"),
        ("gphm_kernels.splat", "from gphm_jax.types import Splats"),
    ],
)
def test_a_wrong_import_is_found(module, source):
    assert breaches(module, imported(source, module.rpartition(".")[0]))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gphm_jax.geometry", "from gphm_jax.types import Camera"),
        ("gphm_jax.losses", "from gphm_jax.types import Render"),
        ("gphm_jax.render", "import gphm_kernels"),
        ("gphm_jax.tools.export", "from gphm_kernels import rasterize_mesh"),
    ],
)
def test_a_right_import_passes(module, source):
    assert not breaches(module, imported(source, module.rpartition(".")[0]))
