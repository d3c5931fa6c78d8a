"""MLflow: the durable spool of a run, the process that sends it, the store and its pages."""
