"""The subcommands of ``fpe``, one a file; each loads what it needs when it runs."""
