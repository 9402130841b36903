"""What a comparison's folder holds: ``tskd compare`` writes it, the report reads it."""

from __future__ import annotations

COMPARISON = "comparison.json"
"""What was compared, under which rule, where and with which versions."""
TABLE, TESTS, CHANGES, RANKS, BIAS_VARIANCE = (
    "table.csv", "tests.csv", "changes.csv", "ranks.csv", "bias_variance.csv"
)  # fmt: skip
METHOD, DATASET = "method", "dataset"
"""Columns of every table."""
REPLICATE_KEYS = frozenset({"seed", "data.budget_seed"})
"""An axis that sets nothing else repeats a measurement: statistics are over it, never between its values."""
