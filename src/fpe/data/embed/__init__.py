"""Images and texts to embeddings, by frozen encoders: what ``fpe embed`` does; see `fpe.data.embed.run`."""
