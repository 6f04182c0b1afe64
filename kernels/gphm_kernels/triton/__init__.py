"""The GPU kernels, written in Triton and compiled ahead of time; only `kernels` and `compile` import Triton itself."""
