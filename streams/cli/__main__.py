"""`python -m streams.cli`: how `driftline up` starts its services with the same interpreter."""

from streams.cli import main

main()
