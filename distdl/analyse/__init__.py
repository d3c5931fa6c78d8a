"""A look inside a trained model: what in its input an answer hangs on, how little of a change upsets it, where it
errs, what it takes for alike."""
