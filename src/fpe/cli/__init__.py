"""The subcommands of ``fpe``, one a file; each loads what it needs when it runs."""

import fpe.errors  # noqa: F401  which checks first that fpe is one distribution's
