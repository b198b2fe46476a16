"""Packs: what was measured and built ahead of time for one kind of device."""
