"""Many runs and what they say together: a grid of recipes, executed here or on a cluster, with paired statistics."""
