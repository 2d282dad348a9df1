"""Passes that normalize a captured graph for analysis."""
