"""The former place of `distdl.jobs.kubernetes.rayjob_driver`, by which a RayJob starts it for one more release: its
image may hold an older distdl, whose module has this name."""

import sys

from distdl.jobs.kubernetes.rayjob_driver import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
