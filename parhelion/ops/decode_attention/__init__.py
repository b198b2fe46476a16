"""Attention of steps of single tokens in Gluon: a second program of ``fused_rope_attention``, and no op of its own."""
