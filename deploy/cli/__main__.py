"""`python -m deploy.cli`, which is `fathom`."""

from deploy.cli.main import main

main()
