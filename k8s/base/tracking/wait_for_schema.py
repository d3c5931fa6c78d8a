"""Ends when both databases have the tables of this MLflow version. The migration Job alone changes them: replicas of the
server that meet an empty database at the same time fall over each other's changes."""

import importlib.util
import sys
import time
from pathlib import Path

import sqlalchemy
from alembic.script import ScriptDirectory

PATIENCE_S = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
MLFLOW = Path(importlib.util.find_spec("mlflow").origin).parent
DATABASES = {  # name -> where its migrations are, and the table that says which was the last
    "mlflow": (MLFLOW / "store" / "db_migrations", "alembic_version"),
    "mlflow_auth": (MLFLOW / "server" / "auth" / "db" / "migrations", "alembic_version_auth"),
}


def missing(name: str, migrations: Path, table: str) -> str:
    """What a database lacks, in words; '' when it is ready."""
    wanted = ScriptDirectory(str(migrations)).get_current_head()
    engine = sqlalchemy.create_engine(f"postgresql+psycopg2:///{name}", connect_args={"connect_timeout": 5})
    try:
        with engine.connect() as connection:
            found = connection.execute(sqlalchemy.text(f"SELECT version_num FROM {table}")).scalar()
    except sqlalchemy.exc.SQLAlchemyError as error:
        return f"{name}: {str(error.__cause__ or error).splitlines()[0]}"
    finally:
        engine.dispose()
    return "" if found == wanted else f"{name}: its schema is {found}, this MLflow wants {wanted}"


deadline_s = time.monotonic() + PATIENCE_S
while lacks := [text for name, place in DATABASES.items() if (text := missing(name, *place))]:
    print("waiting for the migration:", "; ".join(lacks), flush=True)
    if time.monotonic() > deadline_s:
        sys.exit(1)
    time.sleep(2)
