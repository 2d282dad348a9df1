"""The conditions that the pattern table names: small functions of a node; the docstring of each says what must hold."""
