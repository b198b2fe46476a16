"""Code is generated here, also in a run whose other tests have Helion interpret its programs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _generating() -> Iterator[None]:
    """Tile programs remember what the environment said when they were made; here they are told otherwise.

    For all tests of a module at once: what Helion has traced for one test serves the next.
    """
    from helion.runtime.kernel import Kernel
    from helion.runtime.ref_mode import RefMode

    # Made now, while the environment says what it says to the other tests.
    kernels = [each for each in _tile_programs() if isinstance(each, Kernel)]
    interpreted = [kernel for kernel in kernels if kernel.settings.ref_mode != RefMode.OFF]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HELION_INTERPRET", raising=False)
        for kernel in interpreted:
            kernel.reset()
            patch.setattr(kernel.settings, "ref_mode", RefMode.OFF)
        yield
        for kernel in interpreted:
            kernel.reset()


def _tile_programs() -> Iterator[object]:
    """What the modules of tile programs hold, all of them imported."""
    import importlib
    from pathlib import Path

    import parhelion.ops

    folder = Path(parhelion.ops.__file__).parent
    for path in sorted(folder.glob("*/helion_kernel.py")):
        yield from vars(importlib.import_module(f"parhelion.ops.{path.parent.name}.helion_kernel")).values()
