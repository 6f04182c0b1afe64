"""GPHMv2 in JAX: a 3D Gaussian parametric model of human heads, and avatars fitted from it."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Avatar"]


def __getattr__(name: str) -> Any:
    """`Avatar` on first use: importing a light submodule (data, errors) must not load JAX."""
    if name == "Avatar":
        from gphm_jax.avatar import Avatar

        return Avatar
    raise AttributeError(f"module 'gphm_jax' has no attribute '{name}'")
