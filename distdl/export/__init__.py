"""A trained model as files that other programs run: what it answers, not how it learns. One file a format."""
