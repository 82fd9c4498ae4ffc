"""`python -m bestrun` is the command `bestrun`."""

from .cli.main import main

main()
