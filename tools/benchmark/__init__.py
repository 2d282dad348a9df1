"""Time and memory of explanations, measured beside plain gradients and other tools."""
