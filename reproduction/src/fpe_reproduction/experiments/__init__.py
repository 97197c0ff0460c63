"""Experiments: configuration in, stored results with their provenance out."""
