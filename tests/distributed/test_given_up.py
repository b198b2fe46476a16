"""What kernels that wait for a rank that has ended are handed."""

from __future__ import annotations

import pytest
import torch

from parhelion.distributed import given_up
from parhelion.distributed.given_up import Releaser
from parhelion.distributed.group import Group
from parhelion.ops.inboxes import MOST_ROWS, PLACES, Inboxes, forget_inboxes, inboxes

CPU = torch.device("cpu")


def test_every_row_gets_its_next_turn_from_all_ranks_in_both_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given_up, "RELEASE_S", 0.0)
    forget_inboxes()
    found = inboxes(CPU, 2, 6)
    assert isinstance(found, Inboxes)
    found.turns.copy_(torch.arange(MOST_ROWS) - 3)
    releaser = Releaser(CPU, Group(0, 2))
    releaser.give_up()
    own = found.of_ranks[0]
    assert not own.any()
    monkeypatch.setattr(given_up, "RELEASE_S", 1e-3)
    releaser.give_up()
    turns = (own >> 32).int().view(PLACES, 2, MOST_ROWS, 6)
    assert torch.equal(turns, (found.turns + 1)[:, None].expand_as(turns))
    forget_inboxes()
