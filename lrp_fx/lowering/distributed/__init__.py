"""One model in several processes (pipeline parallelism)."""
