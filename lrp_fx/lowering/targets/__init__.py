"""Targets of lowered graphs: one of any kind, many at once, generated tokens."""
