"""`python -m paceline.cli`: the command line without an installed script."""

from paceline.cli.main import main

main()
