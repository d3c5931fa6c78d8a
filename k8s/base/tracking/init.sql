-- Run once, in an empty volume. The accounts have a database of their own, beside the runs.
CREATE DATABASE mlflow_auth OWNER mlflow;
