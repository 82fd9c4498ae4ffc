"""`python -m bestrun` is the command `bestrun`."""

from .cli import main

main()
