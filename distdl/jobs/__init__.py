"""Where a job is sent: a Ray cluster, Kubernetes, Slurm, machines reached over SSH. Nothing here is imported by what
trains."""
