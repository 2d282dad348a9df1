"""Repeated blocks of a graph: finding them, compiling each kind once, checkpointing them."""
