"""`python -m tmem.cli`: the command `tmem`."""

from tmem.cli import main

main()
