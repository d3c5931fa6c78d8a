"""A trained model in use: asked (`model.py`), measured on new data (`measured.py`), drawn from (`drawn.py`)."""
