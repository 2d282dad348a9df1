"""Repeated blocks: found, compiled once, run again on the way back."""
