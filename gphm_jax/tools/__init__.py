"""Small programs, one purpose each: `python -m gphm_jax.tools.NAME`."""
