"""The disk cache: captures and lowered graphs of earlier processes."""
