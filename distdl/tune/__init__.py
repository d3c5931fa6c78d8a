"""`distdl tune`: many runs of one config with other values, chosen by what came of the earlier ones."""
