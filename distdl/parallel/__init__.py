"""Puts a model that was written for one device on the mesh: tensor, expert, sequence."""
