"""The recipe: its settings, the files they are read from, and mistakes in words."""
