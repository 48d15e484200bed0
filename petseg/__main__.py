"""`python -m petseg` is `petseg`."""

from petseg.cli import main

main()
