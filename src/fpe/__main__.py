"""``python -m fpe`` is the command ``fpe`` of this interpreter."""

from fpe.cli.main import main

if __name__ == "__main__":
    main()
