"""The disk cache: captures and lowered graphs that an earlier process wrote."""
