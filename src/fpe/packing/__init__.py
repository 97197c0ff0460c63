"""Pack expanded models: store and compute only the non-zeros."""
