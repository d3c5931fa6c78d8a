"""A trained model that answers over HTTP: rows in JSON become its answers (`answers.py`), those of several requests
together (`batch.py`), asked over REST (`app.py`, `server.py`), here or by several replicas on Ray (`replicas.py`)."""
