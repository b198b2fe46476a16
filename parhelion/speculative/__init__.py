"""Guessing the next tokens of a request, so that one step can check several at once. Ids only, no torch."""

from parhelion.speculative.drafting import Drafting
from parhelion.speculative.drafting_ahead import DraftingAhead
from parhelion.speculative.ngram import NgramProposer
from parhelion.speculative.pace import Pace
from parhelion.speculative.proposer import Proposer
from parhelion.speculative.speculation import Speculation
from parhelion.speculative.speculator import Speculator

__all__ = ["Drafting", "DraftingAhead", "NgramProposer", "Pace", "Proposer", "Speculation", "Speculator"]
