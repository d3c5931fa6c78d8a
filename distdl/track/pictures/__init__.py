"""Pictures of a run, drawn from its spool in a process of its own: `draw.py` is the process, `figures.py` and `looks.py`
what it draws, `arrays.py` how arrays travel there."""

MOST_CLASSES = 100
"""Beyond it no confusion is counted."""
MOST_CURVES = 20
"""Classes beyond which none has curves of its own."""
MOST_POINTS = 2000
"""Rows whose numbers are drawn."""
SCORE_BINS, SURE_BINS = 100, 10
"""Of probabilities: thresholds of the curves, and the bars of the calibration."""
