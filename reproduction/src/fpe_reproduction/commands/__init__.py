"""The commands that this distribution adds to ``fpe``; each loads what it needs when it runs."""
