"""Every decided number of a run, by pure functions: mesh, batches, DeepSpeed's JSON, and what is refused."""
