"""Ops over several ranks, served by ``torch.distributed``: there are no tile programs of them and nothing in packs."""
