"""What ``linear``, ``scaled_mm``, ``scaled_mm_blockwise`` and ``weight_only_mm`` share: one GEMM, many operands.

``helion_kernel`` is the tile program, ``config`` says how it is cut into tiles for a size of M and a target, ``launch``
ties the two together, and ``formulas`` is what the four contracts' references are made of. ``program`` is for ops that
have tile programs of their own around such a product: ``scaled_mm_silu_and_mul`` and ``scaled_mm_of_activations``.
"""
