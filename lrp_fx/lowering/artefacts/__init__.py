"""Lowered graphs as files."""
