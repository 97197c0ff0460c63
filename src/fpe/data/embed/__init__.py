"""Embed images and texts with frozen encoders: what ``fpe embed`` does; see `fpe.data.embed.run`."""
