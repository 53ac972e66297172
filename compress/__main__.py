"""`python -m compress` is the command line tool."""

from compress.cli import main

main()
