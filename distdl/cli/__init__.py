"""The commands, one file each; `main.py` finds them. What they do lies in the rooms below."""
