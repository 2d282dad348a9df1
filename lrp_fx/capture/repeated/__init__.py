"""Repeated blocks are traced once: how a block is recognised as a copy of an earlier one, and how it is written."""
