"""Tables: what their columns are taken for, what is fitted to them, and how they become numbers. `prepare.py` begins."""
