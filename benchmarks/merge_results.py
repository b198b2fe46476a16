"""Put the results of several runs on one kind of device into one file: a call may be too short for everything.

    python benchmarks/merge_results.py --output benchmarks/results/h100_ops.json check.json timing.json
    python benchmarks/merge_results.py --output benchmarks/results/h100_engine.json parity.json speed.json

What a later file measured again replaces what an earlier one has: of ``h100_ops.py`` a contract's figures at a size of
M, with all its providers', and a provider's checks of a contract; of ``h100_engine.py`` a part. ``--sanitizer`` adds
what compute-sanitizer said of ``h100_ops.py --sanitize``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from h100_ops import Timed, as_json, ratios

Report = dict[str, Any]


def merged_ops(reports: Sequence[Report]) -> Report:
    """Of ``h100_ops.py``.

    Raises:
        ValueError: the reports come from different devices or versions.
    """
    same_circumstances([(report["device"], report["versions"]) for report in reports])
    checks: dict[tuple[str, str], Report] = {}
    cases: dict[tuple[str, int], list[Report]] = {}
    for report in reports:
        checks.update({(row["contract"], row["provider"]): row for row in report.get("correctness", [])})
        again: dict[tuple[str, int], list[Report]] = {}
        for row in report.get("timing", []):
            # A case that a run had no time for is none.
            if row["num_tokens"] > 0:
                again.setdefault((row["contract"], row["num_tokens"]), []).append(row)
        cases.update(again)
    timing = [row for case in sorted(cases) for row in cases[case]]
    timed = [
        Timed(row["contract"].partition("(")[0], row["contract"], row["num_tokens"], row["provider"], median(row))
        for row in timing
        if "time_us" in row
    ]
    last = reports[-1]
    return {
        **{name: last[name] for name in ("measured_at", "device", "capability", "cuda", "versions")},
        "command": commands([report["command"] for report in reports]),
        "ceilings": next(report["ceilings"] for report in reversed(reports) if "ceilings" in report),
        "correctness": [checks[key] for key in sorted(checks)],
        "ratios": [asdict(ratio) for ratio in ratios(timed)],
        "timing": timing,
    }


def merged_engine(reports: Sequence[Report]) -> Report:
    """Of ``h100_engine.py``.

    Raises:
        ValueError: the reports come from different devices or versions.
    """
    parts = [report["parts"] for report in reports]
    same_circumstances([(part["device"], part["circumstances"]["packages"]) for part in parts])
    result: Report = {}
    for part in parts:
        result |= part
    command = commands([part["circumstances"]["command"] for part in parts])
    return {"parts": result | {"circumstances": parts[-1]["circumstances"] | {"command": command}}}


def sanitizer_runs(logs: Sequence[Path]) -> list[Report]:
    """What compute-sanitizer said: of each log the tool's summaries, and how many launches it watched.

    Raises:
        ValueError: a log has no summary: the run was cut off.
    """
    found = []
    for log in logs:
        text = log.read_text()
        summaries = re.findall(r"=+ ((?:ERROR|RACECHECK) SUMMARY: .*)", text)
        if not summaries:
            raise ValueError(f"{log} has no summary of compute-sanitizer: the run did not end")
        launched = re.findall(r"^(\w+)\(.*: launched$", text, re.MULTILINE)
        found.append({"log": log.name, "ops": sorted(set(launched)), "launches": len(launched), "said": summaries})
    return found


def median(row: Report) -> float:
    """Microseconds."""
    return float(row["time_us"]["median"])


def commands(each: Sequence[str]) -> str:
    """The commands, without where they wrote to, one after the other."""
    plain = (re.sub(r" --output \S+", "", command) for command in each)
    return "; ".join(dict.fromkeys(re.sub(r"--smollm2 \S+", "--smollm2 FILE", command) for command in plain))


def same_circumstances(circumstances: Sequence[object]) -> None:
    """Refuses to mix what is not comparable."""
    if any(other != circumstances[0] for other in circumstances[1:]):
        raise ValueError(f"the runs differ in device or versions: {circumstances}")


def main() -> None:
    """Merge and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--sanitizer", type=Path, nargs="*", default=[])
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    reports = [json.loads(file.read_text()) for file in options.files]
    if "parts" in reports[0]:
        options.output.write_text(json.dumps(merged_engine(reports), indent=1) + "\n")
        return
    report = merged_ops(reports)
    known = json.loads(options.output.read_text()).get("sanitizer", []) if options.output.exists() else []
    options.output.write_text(as_json(report | {"sanitizer": sanitizer_runs(options.sanitizer) or known}))


if __name__ == "__main__":
    main()
