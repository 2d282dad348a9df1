"""Operators: what each ATen operator is to relevance."""
