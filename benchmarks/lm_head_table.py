"""The table of what ``lm_head_accuracy.py`` found, as ``tables.py`` writes it into the documents."""

from __future__ import annotations

import json


def lm_head_table(content: bytes) -> str:
    """A line a head, all beside the one in bfloat16."""
    found = json.loads(content)
    lines = ["| output head | same likeliest token | KL divergence (nats), mean (p99) | perplexity |"]
    lines.append("|---|---:|---:|---:|")
    for row in found["heads"]:
        is_baseline = row["perplexity_change"] == 0
        same = "" if is_baseline else f"{row['same_top1']:.1%}"
        kl = "" if is_baseline else f"{row['kl_mean']:.2g} ({row['kl']['p99']:.2g})"
        change = "" if is_baseline else f" ({row['perplexity_change']:+.2%})"
        lines.append(f"| {row['head']} | {same} | {kl} | {row['perplexity']:.2f}{change} |")
    settings, circumstances = found["settings"], found["circumstances"]
    before, after = (each / 1e6 for each in found["head_bytes"])
    machine = circumstances["machine"]
    said = (
        f"{settings['model']}, {found['positions']:,} next tokens of {settings['prompts']} passages of Python's "
        "reference manual, all heads given the same hidden states in bfloat16 and compared with the one in bfloat16. "
        f"Its weights take {before:.1f} MB, as codes {after:.1f} MB. The contracts' references, on "
        f"{machine['name']}, Python {circumstances['python']}, torch {machine['torch']}, "
        f"{circumstances['measured_at'][:10]}; `{circumstances['command']}`."
    )
    return "\n".join([*lines, "", said])
