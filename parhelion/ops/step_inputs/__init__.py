"""``step_inputs``: what a model is given of a step, out of the tables of all requests."""

from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op
from parhelion.ops.step_inputs.contract import StepInputs

OP = Op(
    StepInputs,
    (ReferenceProvider(), InductorProvider(), HelionProvider()),
    examples=(StepInputs(16), StepInputs(32)),
)

__all__ = ["OP", "StepInputs"]
