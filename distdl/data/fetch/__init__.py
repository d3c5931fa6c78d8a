"""Classic data sets from where they are published: what there is, and how it comes to this machine unharmed."""
