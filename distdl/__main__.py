"""`python -m distdl` is the `distdl` command."""

import sys

from distdl.cli.main import command

sys.exit(command())
