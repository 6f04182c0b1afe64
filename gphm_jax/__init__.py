"""GPHMv2 in JAX: a 3D Gaussian parametric model of human heads, and avatars fitted from it."""

__version__ = "0.1.0"
