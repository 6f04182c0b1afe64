"""Puts the kernels into the wheel, sources and library: a user without a compiler gets them ready made."""

import importlib.util
import pathlib
import sysconfig
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelLibrary(BuildHookInterface):
    """Builds the library before a wheel is packed. Where no compiler is, the wheel is pure: it carries the sources,
    from which the package builds the library at first use."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":  # an editable install builds in the checkout
            return
        # An installed package looks for its sources in gphm_kernels/csrc. The setting `force-include` would copy them
        # for editable installs too, where they grow stale.
        build_data["force_include"]["kernels/csrc"] = "gphm_kernels/csrc"
        path = pathlib.Path(self.root) / "kernels" / "gphm_kernels" / "backends" / "build.py"
        spec = importlib.util.spec_from_file_location("kernel_build", path)
        assert spec and spec.loader
        builder = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(builder)
        try:
            library = builder.build()
        except builder.BuildError as error:
            self.app.display_warning(f"{error}; the wheel carries the sources alone")
            return
        build_data["force_include"][str(library)] = f"gphm_kernels/build/{builder.packed_name()}"
        build_data["pure_python"] = False
        # The library is reached through ctypes: it fits any Python, and this platform alone.
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
