"""Scores, intervals, statistics and quality measures on plain arrays: nothing here knows a model or a recipe."""
