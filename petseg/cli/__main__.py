"""`python -m petseg.cli` is `petseg`."""

from petseg.cli import main

main()
