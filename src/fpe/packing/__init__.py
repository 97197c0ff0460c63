"""Packed layers: the same function as the masked ones, at the cost of the dense parent."""
