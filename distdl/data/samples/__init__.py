"""Samples of named fields, as the shards of other loaders hold them, as columns."""
