"""What ``parhelion plan`` predicts for one GPU beside what the engine took there: needs no GPU.

    python benchmarks/plan_check.py [--measured FILE] [--output FILE]

The measured file is ``h100_engine.py``'s, the pack the one that comes with Parhelion. Runs without a pack are predicted
from its times of what serves without one; a model that it was not tuned for is scaled from the shapes that it has.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

RESULTS = Path(__file__).parent / "results"
PACK = Path(__file__).parents[1] / "parhelion" / "packs" / "shipped" / "h100.zip"
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
        from_pack, scaled, floor: shares of the predicted time, by how they are known.
    """

    predicted_ms: float
    measured_ms: float
    off: float
    from_pack: float
    scaled: float
    floor: float


@dataclass(frozen=True)
class CheckedRun:
    """A model at a batch; ``pack`` is None where it served without one."""

    model: str
    pack: str | None
    batch: int
    tpot: Prediction
    prefill: Prediction


@dataclass(frozen=True)
class PlanCheck:
    """The file.

    Attributes:
        command: what predicted.
        pack: whose kernel times were taken, and when it was made.
        measured_in: the file of the measurements; device, versions, time and command are its own.
    """

    command: str
    pack: str
    measured_in: str
    measured_command: str
    measured_at: str
    device: str
    versions: dict[str, str]
    runs: tuple[CheckedRun, ...]


def check(measured: Path) -> PlanCheck:
    """Predictions for all runs of a file."""
    from parhelion.bench.machine import command_line
    from parhelion.packs.location import open_pack

    parts = msgspec.json.decode(measured.read_bytes())["parts"]
    circumstances = parts["circumstances"]
    return PlanCheck(
        command=command_line(["plan_check.py"]),
        pack=f"{PACK.stem}, {open_pack(str(PACK)).pack.created_at}",
        measured_in=measured.name,
        measured_command=circumstances["command"],
        measured_at=circumstances["measured_at"],
        device=parts["device"],
        versions={package["name"]: package["version"] for package in circumstances["packages"]},
        runs=tuple(_run(row) for row in parts["speed"] if "tpot_ms" in row),
    )


def predicted(
    model: Any, known: Any, tp: int, batch: int, input_len: int = INPUT_LEN, output_len: int = OUTPUT_LEN
) -> tuple[Any, Any]:
    """What a token and all prompts would take on one replica, as ``StepModel`` has them.

    Args:
        model: a ``TunedModel`` and its ``ModelSize``.
        known: of the device; see ``known_times``.
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
    return tpot, steps.prefill(Layout(tp), batch, input_len, workload.max_num_batched_tokens)


def _run(row: dict[str, Any]) -> CheckedRun:
    from parhelion.cli.planned_model import known_times, model_size
    from parhelion.tuning.model_calls import tuned_model

    model = tuned_model(row["model"], QUANTIZATION)
    known = known_times("h100", str(PACK), untuned=row.get("pack") is None)
    tpot, prefill = predicted((model, model_size(model, row["model"])), known, 1, row["batch"])
    return CheckedRun(
        model=row["model"],
        pack=row.get("pack"),
        batch=row["batch"],
        tpot=_prediction(tpot, row["tpot_ms"]),
        prefill=_prediction(prefill, row["prefill_ms"]),
    )


def _prediction(time: Any, measured_ms: float) -> Prediction:
    from parhelion.cli.plan_report import planned_time

    found = planned_time(time)
    return Prediction(found.ms, measured_ms, found.ms / measured_ms - 1, found.measured, found.scaled, found.floor)


def plan_check_table(content: bytes) -> str:
    """Predicted beside measured, a line a run."""
    result = msgspec.json.decode(content, type=PlanCheck)
    lines = [
        "| model | kernels | batch | TPOT predicted (ms) | measured | off | prefill predicted (ms) | measured | off |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run in result.runs:
        kernels = f"pack {run.pack}" if run.pack else "untuned"
        cells = f"{run.model} | {kernels} | {run.batch} | {_cells(run.tpot, 2)} | {_cells(run.prefill, 1)}"
        lines.append(f"| {cells} |")
    near = sum(abs(each.off) <= NEAR for run in result.runs for each in (run.tpot, run.prefill))
    versions = ", ".join(f"{name} {result.versions[name]}" for name in ("torch", "triton", "helion"))
    note = (
        f"{near} of {2 * len(result.runs)} within {NEAR:.0%}. FP8 weights and activations, {INPUT_LEN} tokens in, "
        f"{OUTPUT_LEN} out, greedy. Measured: {result.device}, {versions}, {result.measured_at[:10]} "
        f"(`benchmarks/results/{result.measured_in}`); predicted: `{result.command}`."
    )
    return "\n".join([*lines, "", note])


def _cells(found: Prediction, decimals: int) -> str:
    return f"{found.predicted_ms:.{decimals}f} | {found.measured_ms:.{decimals}f} | {found.off:+.0%}"


def main() -> None:
    """Predict and write."""
    from parhelion.bench.report import write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, default=RESULTS / "h100_engine.json")
    parser.add_argument("--output", type=Path, default=RESULTS / "plan_check.json")
    args = parser.parse_args()
    found = check(args.measured)
    write_json(found, args.output)
    print(plan_check_table(args.output.read_bytes()))


if __name__ == "__main__":
    main()
