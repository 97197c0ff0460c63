"""Turn images and texts into embeddings by frozen encoders: what ``fpe embed`` does; see `fpe.data.embed.run`."""
