"""What a block of a network may know of other ranks: axes, noise, rows of all. Imports nothing of ours."""
