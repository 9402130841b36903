"""The stages: plain functions (config section, inputs, out folder) -> metrics; none knows another's code."""
