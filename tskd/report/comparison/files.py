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
ABLATION_COLUMNS = ("dice_features_zeroed", "dice_features_of_another_image", "dice_skips_zeroed")
"""Mean Dice of the same network with a part of it switched off in the test."""
PRIVACY = "updates_are"
FEDERATED_COLUMNS = ("worst_site", "dice_worst_site", "dice_of_sites", PRIVACY, "epsilon", "delta", "mb_down", "mb_up")
"""Of federated recipes: the site of the lowest Dice, that Dice, the mean over sites, what is done to updates, epsilon
at delta where there is noise, and what was sent in all."""
RESULT_COLUMNS = frozenset({
    "level", "volume_error_ml",
    "run", "status", "error", "title", "dice", "dice_ci95_low", "dice_ci95_high", "iou", "hd95_px", "hd95_mm",
    "assd_px", "assd_mm", "n_cases", "scored", "missed", "false_positive", "both_empty", "seconds",
    "peak_memory_mb", "peak_gpu_memory_mb", "threads", "parameters", "model_mb", "latency_ms", "student_gflops",
    "teacher_gflops", *ABLATION_COLUMNS, *FEDERATED_COLUMNS,
    "evaluation", "bias2", "variance", "remainder", "runs",
})  # fmt: skip
"""Columns of table.csv and bias_variance.csv beside axes: no axis of a grid's own may be called so."""
STATISTICS_COLUMNS = frozenset({
    "measure", "baseline", "difference", "ci95_low", "ci95_high", "p_wilcoxon", "p_holm", "wins", "ties", "losses",
    "tie_margin", "n_cases", "n_seeds", "axis", "first", "last", "mean_rank", "mean_score",
})  # fmt: skip
"""The same of tests.csv, changes.csv and ranks.csv, with a column for every axis not compared or averaged."""
_WORDS = frozenset({
    "level", "run", "status", "error", "title", "evaluation", "measure", "baseline", "axis", "first", "last",
    "worst_site", PRIVACY,
})  # fmt: skip
FIGURES = (RESULT_COLUMNS | STATISTICS_COLUMNS) - _WORDS
"""Columns that hold a number or nothing; all others, the axes too, hold words as the grid has them."""
