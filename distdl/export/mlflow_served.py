"""What MLflow runs when it loads an exported model: this file is copied into the model, and nothing of it is pickled."""

from mlflow.models import set_model

from distdl.export.mlflow import Served

set_model(Served())
