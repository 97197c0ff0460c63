"""Save, load and export models."""
