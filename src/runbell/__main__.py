"""`python -m runbell` is the command line."""

from runbell.cli import main

main()
