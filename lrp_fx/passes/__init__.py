"""Optimisations of a rewritten graph: the same relevance from less work."""
