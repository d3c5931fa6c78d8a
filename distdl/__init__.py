"""distdl: one YAML file trains any architecture family on any number of GPUs."""

__version__ = "0.1.0"
