"""How much memory this process has held at most."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_resident_memory() -> int:
    """The most bytes of this process that have been in memory at once, since it started.

    Pages of memory-mapped files count while they are mapped. Linux's own mark (VmHWM) is preferred: ``ru_maxrss``,
    which other systems have, may be inherited from the process that started this one.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Imported here: Windows lacks it.
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
