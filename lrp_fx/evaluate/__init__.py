"""Evaluation: how faithful explanations are, measured; baselines through the same interface."""
