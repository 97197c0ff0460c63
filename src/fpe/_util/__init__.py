"""Helpers that know nothing of expansion: files, terminal output, module surgery, random state."""
