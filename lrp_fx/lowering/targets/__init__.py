"""Targets of lowered graphs: one target of any kind, many targets at once, generated tokens."""
