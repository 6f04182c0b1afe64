"""Portable implementations of every kernel in plain JAX: the truth that the native backends are compared with."""
