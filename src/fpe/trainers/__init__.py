"""Callbacks that expand a network while a trainer trains it; each module loads its trainer alone.

`fpe.trainers.lightning.Expand` is for Lightning, `fpe.trainers.huggingface.Expand` for the Trainer of
transformers. With accelerate, or a loop of your own, `fpe.expand_` is the one line.
"""
