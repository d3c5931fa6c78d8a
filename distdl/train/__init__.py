"""The training itself: `survey.py` looks once, `worker.py` builds everything from the plan, `loop.py` takes the steps."""
