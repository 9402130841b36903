"""One recipe from its data to its scores and its bundle: what is made from what, in which order, at what cost."""
