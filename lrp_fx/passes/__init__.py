"""Optimisations of a rewritten graph: the same relevance in less time."""
