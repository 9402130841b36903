"""The page on a comparison."""
