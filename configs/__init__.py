"""Configurations: `get_config(preset)` returns a locked ConfigDict."""
