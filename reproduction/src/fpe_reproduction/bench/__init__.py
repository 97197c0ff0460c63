"""Time and memory of packed layers against named alternatives: what ``fpe bench`` runs."""
