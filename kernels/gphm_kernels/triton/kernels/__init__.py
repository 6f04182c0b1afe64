"""The kernels in Triton's own language, one op a module: these and `compile` alone import Triton."""
