"""A process that serves from a pack has no compiler in it and writes nothing."""

from __future__ import annotations

import json
import subprocess
import sys


def test_serving_from_a_pack_imports_no_compiler_and_writes_no_file() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.serve_from_pack"], capture_output=True, text=True, timeout=120, check=True
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {"imported": [], "written": [], "launched": 1, "tokens": 20 + 21 + 22}
