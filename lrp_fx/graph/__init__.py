"""Tools on FX graphs that all stages share."""
