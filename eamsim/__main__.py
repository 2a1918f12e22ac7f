"""`python -m eamsim`."""

from eamsim.cli import main

main()
