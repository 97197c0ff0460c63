"""Fixed Parameter Expansion: partition, duplicate, prune, mask (section 2.3 of the paper)."""
