"""``python -m parhelion.cli``: the command line of this interpreter's own installation."""

from parhelion.cli.main import main

main()
