"""The former place of `distdl.jobs.ssh_node`, by which machines are asked of SSH jobs for one more release: a job that an
older distdl sent has its module of this name, so that it can still be followed."""

import sys

from distdl.jobs.ssh_node import main

if __name__ == "__main__":
    sys.exit(main())
