"""What to say at the start of a draft's tile programs that no pack has: they compile in the middle of serving."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parhelion.ops.contract import Contract
from parhelion.ops.registry import needs_other_ranks


def unbuilt_note(whose: str, contracts: Sequence[Contract], path: Path, target: str, tp: int = 1) -> str:
    """A sentence for the user.

    Args:
        whose: who calls them, such as "the draft head".
        contracts: of which no pack has rows, and which tile programs serve.
        path: the draft's folder or file.
        target: what those who build call the device.
        tp: ranks that share it. What they call together is tuned and never built alone.
    """
    names = ", ".join(sorted({contract.name for contract in contracts}))
    is_shared = any(map(needs_other_ranks, contracts))
    verb, where = ("tune", "") if is_shared else ("build", f" --target {target}")
    command = f"parhelion {verb} {path}{where}" + (f" --tp {tp}" if tp > 1 else "")
    return (
        f"no pack has what {whose} calls of {names}: their tile programs compile when a size is first met, while all "
        f"requests wait; {command} makes a pack of them, which --pack auto takes"
    )
