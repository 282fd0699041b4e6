"""Olive 0.13: a pass, an evaluator and the search sampler ``linas``; ``qnas olive-config`` writes what Olive needs.

All three take the options of ``qnas tune`` as one value, ``request``.
"""
