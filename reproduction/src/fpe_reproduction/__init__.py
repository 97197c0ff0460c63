"""Reproduce the experiments of *Expand Neurons, Not Parameters*, and measure rivals and speed."""
