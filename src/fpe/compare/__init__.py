"""Train a dense network, its expansion and its double, and compare them: what `fpe fit` does."""
