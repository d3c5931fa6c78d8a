"""The former place of `distdl.layout.noise`: users' own families import it from here."""

from distdl.layout.noise import *  # noqa: F403
