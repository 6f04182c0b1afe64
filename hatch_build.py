"""Puts the kernels into the wheel, sources and library: a user without a compiler gets them ready made."""

import importlib.util
import pathlib
import sysconfig
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelLibrary(BuildHookInterface):
    """Builds the library before a wheel is packed. Where no compiler is, the wheel is pure: it carries the sources,
    from which the package builds the library at first use. GPU kernels go in where `make gpu-kernels` has made them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":  # an editable install builds in the checkout
            return
        # An installed package looks for its sources in gphm_kernels/csrc. The setting `force-include` would copy them
        # for editable installs too, where they grow stale.
        build_data["force_include"]["kernels/csrc"] = "gphm_kernels/csrc"
        binaries = self._load("triton/binaries.py")
        try:
            binaries.read(binaries.folder())
            build_data["force_include"][str(binaries.folder())] = "gphm_kernels/build/gpu"
        except binaries.ManifestError as error:
            self.app.display_warning(f"{error}; the wheel has no GPU kernels, and GPUs run the portable ones")
        builder = self._load("backends/build.py")
        try:
            library = builder.build()
        except builder.BuildError as error:
            self.app.display_warning(f"{error}; the wheel carries the sources alone")
            return
        build_data["force_include"][str(library)] = f"gphm_kernels/build/{builder.packed_name()}"
        build_data["pure_python"] = False
        # The library is reached through ctypes: it fits any Python, and this platform alone.
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def _load(self, name: str) -> ModuleType:
        """A module of the kernels, by its file: the package itself is not installed yet."""
        path = pathlib.Path(self.root) / "kernels" / "gphm_kernels" / name
        spec = importlib.util.spec_from_file_location(f"packed_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
