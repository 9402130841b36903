"""The page on one run."""
