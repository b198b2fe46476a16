"""Whether tile programs are interpreted: the one question that they ask of where they run."""

from __future__ import annotations

import os


def interpreting() -> bool:
    """Whether Helion was told to interpret (``HELION_INTERPRET=1``); its own variable, read as it reads it."""
    return os.environ.get("HELION_INTERPRET", "0") not in ("", "0")
