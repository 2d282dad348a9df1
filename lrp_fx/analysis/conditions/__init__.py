"""The conditions of the pattern table: small functions of a node. Their docstrings are the conditions in words."""
