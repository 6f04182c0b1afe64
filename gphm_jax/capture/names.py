"""Names of frames, views and identities: they become names of folders and files."""

from __future__ import annotations

import re
from collections.abc import Iterable


def safe_name(name: str) -> str:
    """The name with everything but letters, digits and . _ + - as underscores, and no leading dot."""
    cleaned = re.sub(r"[^\w.+-]+", "_", name).strip("._")
    return cleaned or "unnamed"


def unique_names(names: Iterable[str]) -> list[str]:
    """Safe names in the same order; the second of a pair that would be equal gets a number.

    Equal means equal on disks that do not tell capitals from small letters.
    """
    taken: set[str] = set()
    result = []
    for name in names:
        candidate = base = safe_name(name)
        number = 2
        while candidate.lower() in taken:
            candidate = f"{base}_{number}"
            number += 1
        taken.add(candidate.lower())
        result.append(candidate)
    return result
