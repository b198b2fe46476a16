"""What ``parhelion plan`` predicts beside what the engine took: needs no GPU.

    python benchmarks/plan_check.py [--measured FILE ...] [--output FILE]

The measured files are ``h100_engine.py``'s, ``h100x2_tp.py``'s and those of ``parhelion bench compare``; the packs are
those that come with Parhelion for the devices of the files. Left out, they are the files that were measured with the
kernels of these packs. Runs without a pack are predicted from its times of what serves without one; a model that it was
not tuned for is scaled from the shapes that it has.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

RESULTS = Path(__file__).parent / "results"
MEASURED = tuple(RESULTS / f"{name}.json" for name in ("h200_vs_vllm", "h200x2_tp"))
PACKS = Path(__file__).parents[1] / "parhelion" / "packs" / "shipped"
INPUT_LEN, OUTPUT_LEN = 512, 128
"""Of the measured runs."""
QUANTIZATION = "fp8_per_token"
NEAR = 0.15
"""How far a prediction may be off."""


@dataclass(frozen=True)
class Prediction:
    """Milliseconds, predicted and measured.

    Attributes:
        off: predicted over measured, less 1.
        from_pack, scaled, floor, links, host: shares of the predicted time, by how they are known.
    """

    predicted_ms: float
    measured_ms: float
    off: float
    from_pack: float
    scaled: float
    floor: float
    links: float
    host: float


@dataclass(frozen=True)
class CheckedRun:
    """A model at a batch on one rank or several; ``pack`` is None where it served without one."""

    model: str
    pack: str | None
    tp: int
    batch: int
    tpot: Prediction
    prefill: Prediction


@dataclass(frozen=True)
class CheckedFile:
    """What was measured in one file, and predicted for it.

    Attributes:
        measured_in: the file; device, versions, time and command are its own.
        pack: whose kernel times were taken, and when it was made.
    """

    measured_in: str
    command: str
    measured_at: str
    device: str
    versions: dict[str, str]
    pack: str
    runs: tuple[CheckedRun, ...]


@dataclass(frozen=True)
class PlanCheck:
    """The file; ``command`` is what predicted."""

    command: str
    files: tuple[CheckedFile, ...]


def check(measured: Sequence[Path]) -> PlanCheck:
    """Predictions for all runs of some files."""
    from parhelion.bench.machine import command_line

    return PlanCheck(command_line(["plan_check.py"]), tuple(map(_checked, measured)))


def _checked(file: Path) -> CheckedFile:
    from parhelion.distributed.devices import PRESETS
    from parhelion.packs.location import open_pack

    measured = measured_in(msgspec.json.decode(file.read_bytes()))
    device = next(each.name for each in PRESETS if each.device == measured.device)
    pack = PACKS / f"{device}.zip"
    return CheckedFile(
        measured_in=file.name,
        command=measured.command,
        measured_at=measured.measured_at,
        device=measured.device,
        versions=measured.versions,
        pack=f"{pack.stem}, {open_pack(str(pack)).pack.created_at}",
        runs=tuple(_run(run, device, pack) for run in measured.runs),
    )


@dataclass(frozen=True)
class Run:
    """What was measured of a model at a batch.

    Attributes:
        pack: None if it served without one.
        step_tokens: of a step, at most.
    """

    model: str
    pack: str | None
    tp: int
    batch: int
    tpot_ms: float
    prefill_ms: float
    step_tokens: int = 4096


@dataclass(frozen=True)
class Measured:
    """What a result file says, whichever benchmark wrote it."""

    device: str
    measured_at: str
    command: str
    versions: dict[str, str]
    runs: tuple[Run, ...]


def measured_in(content: dict[str, Any]) -> Measured:
    """The runs of a file of ``h100_engine.py``, ``h100x2_tp.py`` or ``parhelion bench compare``."""
    if "settings" in content:
        return _compared(content)
    about = content.get("parts", content)
    if "pieces" in content:
        rows = [row for piece in content["pieces"].values() for row in piece["rows"] if row["what"] == "speed"]
    else:
        rows = [row for row in about["speed"] if "tpot_ms" in row]
    circumstances = about["circumstances"]
    return Measured(
        device=about["device"],
        measured_at=circumstances["measured_at"],
        command=circumstances["command"],
        versions={package["name"]: package["version"] for package in circumstances["packages"]},
        runs=tuple(
            Run(row["model"], row.get("pack"), row.get("tp", 1), row["batch"], row["tpot_ms"], row["prefill_ms"])
            for row in rows
        ),
    )


def _compared(content: dict[str, Any]) -> Measured:
    own = "parhelion"
    packs = {each["model"]: each["facts"]["pack"] or None for each in content["engines"] if each["engine"] == own}
    return Measured(
        device=content["device"],
        measured_at=content["measured_at"],
        command=content["command"],
        versions=content["versions"][own],
        runs=tuple(
            Run(
                model=row["model"],
                pack=packs[row["model"]],
                tp=1,
                batch=row["batch"],
                tpot_ms=row["tpot_ms"][own],
                prefill_ms=row["prefill_ms"][own],
                step_tokens=content["settings"]["max_num_batched_tokens"],
            )
            for row in content["rows"]
        ),
    )


def predicted(
    model: Any,
    known: Any,
    tp: int,
    batch: int,
    input_len: int = INPUT_LEN,
    output_len: int = OUTPUT_LEN,
    step_tokens: int = 4096,
) -> tuple[Any, Any]:
    """What a token and all prompts would take on one replica, as ``StepModel`` has them.

    Args:
        model: a ``TunedModel`` and its ``ModelSize``.
        known: of the device; see ``known_times``.
        step_tokens: of a step, at most.
    """
    from parhelion.cli.planned_model import calls_of
    from parhelion.distributed.collectives import Fabric, network
    from parhelion.distributed.layouts import Layout
    from parhelion.distributed.planner import Workload
    from parhelion.distributed.step_model import StepModel

    tuned, size = model
    workload = Workload(input_len, output_len)
    fabric = Fabric(known.device.link, network(50), 8)
    steps = StepModel(size, calls_of(tuned, size, known.target), known.times, fabric)
    tpot = steps.tpot(Layout(tp), batch, workload.context)
    return tpot, steps.prefill(Layout(tp), batch, input_len, step_tokens)


def _run(run: Run, device: str, pack: Path) -> CheckedRun:
    from parhelion.cli.planned_model import known_times, model_size
    from parhelion.tuning.model_calls import tuned_model

    tuned = tuned_model(run.model, QUANTIZATION)
    model = tuned, model_size(tuned, run.model)
    known = known_times(device, str(pack), untuned=run.pack is None)
    tpot, prefill = predicted(model, known, run.tp, run.batch, step_tokens=run.step_tokens)
    return CheckedRun(
        model=run.model,
        pack=run.pack,
        tp=run.tp,
        batch=run.batch,
        tpot=_prediction(tpot, run.tpot_ms),
        prefill=_prediction(prefill, run.prefill_ms),
    )


def _prediction(time: Any, measured_ms: float) -> Prediction:
    from parhelion.cli.plan_report import planned_time

    found = planned_time(time)
    return Prediction(
        predicted_ms=found.ms,
        measured_ms=measured_ms,
        off=found.ms / measured_ms - 1,
        from_pack=found.measured,
        scaled=found.scaled,
        floor=found.floor,
        links=found.links,
        host=found.host,
    )


def plan_check_table(content: bytes) -> str:
    """Predicted beside measured, a line a run."""
    result = msgspec.json.decode(content, type=PlanCheck)
    lines = [
        "| measured | model | kernels | tp | batch | TPOT predicted (ms) | measured | off | prefill predicted (ms) "
        "| measured | off |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for file in result.files:
        for run in file.runs:
            kernels = f"pack {run.pack}" if run.pack else "untuned"
            where = f"{file.device.split()[1]}, {file.measured_at[:10]}"
            cells = f"{where} | {run.model} | {kernels} | {run.tp} | {run.batch} | {_cells(run.tpot, 2)}"
            lines.append(f"| {cells} | {_cells(run.prefill, 1)} |")
    times = [each for file in result.files for run in file.runs for each in (run.tpot, run.prefill)]
    near = sum(abs(each.off) <= NEAR for each in times)
    files = "; ".join(f"`{file.measured_in}` ({file.device}, {_versions(file)})" for file in result.files)
    note = (
        f"{near} of {len(times)} within {NEAR:.0%}. FP8 weights and activations, {INPUT_LEN} tokens in, {OUTPUT_LEN} "
        f"out, greedy. Measured in {files}, under `benchmarks/results`; predicted: `{result.command}`."
    )
    return "\n".join([*lines, "", note])


def _versions(file: CheckedFile) -> str:
    return ", ".join(f"{name} {file.versions[name]}" for name in ("torch", "triton", "helion") if name in file.versions)


def _cells(found: Prediction, decimals: int) -> str:
    return f"{found.predicted_ms:.{decimals}f} | {found.measured_ms:.{decimals}f} | {found.off:+.0%}"


def main() -> None:
    """Predict and write."""
    from parhelion.bench.report import write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, nargs="+", default=list(MEASURED))
    parser.add_argument("--output", type=Path, default=RESULTS / "plan_check.json")
    args = parser.parse_args()
    found = check(args.measured)
    write_json(found, args.output)
    print(plan_check_table(args.output.read_bytes()))


if __name__ == "__main__":
    main()
