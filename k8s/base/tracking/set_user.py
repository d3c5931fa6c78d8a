"""Makes an MLflow user, or gives it a new password: `python set_user.py NAME < PASSWORD`, in the server's pod.

The environment's MLFLOW_TRACKING_PASSWORD, else the admin's first password, must be the admin's present one.
"""

import os
import sys

name, password = sys.argv[1], sys.stdin.read().strip()
os.environ.setdefault("MLFLOW_TRACKING_USERNAME", "admin")
os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"])

from mlflow.exceptions import MlflowException  # noqa: E402  (reads the environment)
from mlflow.server.auth.client import AuthServiceClient  # noqa: E402

client = AuthServiceClient(f"http://127.0.0.1:{os.environ['MLFLOW_PORT']}")
try:
    client.create_user(name, password)
    print(f"made the user {name}")
except MlflowException as error:
    if error.error_code != "RESOURCE_ALREADY_EXISTS":
        sys.exit(f"MLflow refuses: {error}")
    client.update_user_password(name, password)
    print(f"the user {name} has a new password")
