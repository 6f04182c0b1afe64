"""Stage 1 alone: the guiding geometry model.

    python train.py --config=configs/mesh.py[:tiny|:small|:paper]

Presets as in configs/gaussian.py.
"""

import ml_collections

from configs import gaussian


def get_config(preset: str = "small") -> ml_collections.ConfigDict:
    """configs/gaussian.py without its second stage."""
    config = gaussian.get_config(preset)
    config.name, config.gaussian_stage = "mesh", False
    return config
