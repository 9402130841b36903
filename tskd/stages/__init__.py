"""The stages, one file an artifact: ``build(bench, config, inputs...)`` says what it is made from.

No stage knows another's code (the linter sees to it); what several need lies in files without a ``build``: training on
labels, lessons, stored answers, denoisers, leaks, scoring.
"""
