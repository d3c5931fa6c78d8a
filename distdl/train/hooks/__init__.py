"""Side effects with a cadence, one file each: log, evaluate, checkpoint, guards."""
