"""Rows that a pack has already and that stay as they are: of fewer ranks, of another output head, for a draft head of
any model, or of ops that are not tuned now. Steps are measured with them, and the times of blocks with them stay.

What does not depend on how a layer is divided, such as its norms, every number of ranks calls alike; what is not of the
output head, one that is quantized and one that is not; and some of what it calls, a draft head shares with its target.
Chosen anew in other steps it would be another row, and what was measured of whole blocks with the one before would be
void.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from parhelion.ops.source_hash import source_hashes
from parhelion.ops.tile_programs import programs_module
from parhelion.packs.format import NEVER_SERVE, TILE_PROGRAMS, Candidate, ModelEntry, Pack
from parhelion.packs.lookup import usable_rows
from parhelion.platform.measure import Summary
from parhelion.tuning.head_calls import TunedHead
from parhelion.tuning.jobs import Outcome
from parhelion.tuning.model_calls import TunedModel
from parhelion.tuning.row_state import RowState


def settled(rows: Sequence[RowState], model: TunedModel | TunedHead, before: Pack | None) -> list[RowState]:
    """Those of the rows that the pack has of the same model on fewer ranks, or with a head that is not quantized, with
    the sources that are here; of a draft head, of other models too. They are told who serves them.
    """
    if before is None:
        return []
    called = {key for entry in before.models if _decides(entry, model) for key in entry.contracts}
    return standing([row for row in rows if row.contract.key() in called], before)


def standing(rows: Sequence[RowState], before: Pack) -> list[RowState]:
    """Those of the rows that the pack has, of whichever model, with the sources that are here. They are told who serves
    them.
    """
    usable, _ = usable_rows(before, source_hashes())
    best = {(row.contract, row.num_tokens): row.best for row in usable}
    found = []
    for row in rows:
        candidate = best.get((row.contract.key(), row.bucket))
        outcome = None if candidate is None else _outcome(row, candidate)
        if outcome is not None:
            row.met((outcome.provider, outcome.config), outcome, 0.0, is_final=True)
            found.append(row)
    return found


def _decides(entry: ModelEntry, model: TunedModel | TunedHead) -> bool:
    """Whether what an entry shares with the model, the entry decides."""
    if (entry.name, entry.quantization) != (model.name, model.quantization.name):
        return isinstance(model, TunedHead)
    same_head = entry.lm_head_quantization == model.lm_head_quantization
    plain_head = entry.lm_head_quantization is None
    return entry.tp < model.tp if same_head else plain_head and entry.tp <= model.tp


def _outcome(row: RowState, candidate: Candidate) -> Outcome | None:
    """What was measured of a candidate; None if nothing was, or its config is none of the op's here."""
    if candidate.time_us <= 0 or candidate.provider in NEVER_SERVE:
        return None
    config = None
    if candidate.provider in TILE_PROGRAMS:
        try:
            config = msgspec.convert(candidate.config, programs_module(row.contract.name, candidate.provider).Config)
        except msgspec.ValidationError:
            return None
    middle, low, high = candidate.time_us, candidate.time_us_p10, candidate.time_us_p90
    return Outcome(candidate.provider, config, Summary(1, middle, low, high, high, low, high))
