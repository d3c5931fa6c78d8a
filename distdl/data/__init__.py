"""From raw files to batches: `prepare.py` and its folders make data sets, `read.py` and `source.py` hand them out."""
