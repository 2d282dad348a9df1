"""Time and memory of explanations, measured side by side with plain gradients and with other tools."""
