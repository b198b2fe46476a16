"""Policy, block pool and prefix cache: which tokens run in each step. Ids and counts only, no torch."""

from parhelion.scheduler.config import SchedulerConfig
from parhelion.scheduler.integrity import IntegrityError
from parhelion.scheduler.plan import AWAITED, DRAFTED, KNOWN, Admission, NewBlocks, RequestUpdate, Row, StepPlan
from parhelion.scheduler.request import Request, RequestStatus
from parhelion.scheduler.scheduler import Scheduler

__all__ = [
    "AWAITED",
    "DRAFTED",
    "KNOWN",
    "Admission",
    "IntegrityError",
    "NewBlocks",
    "Request",
    "RequestStatus",
    "RequestUpdate",
    "Row",
    "Scheduler",
    "SchedulerConfig",
    "StepPlan",
]
