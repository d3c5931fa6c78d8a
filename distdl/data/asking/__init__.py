"""Rows that a trained model is asked about, from files as people have them, and its answers, back in their words."""
