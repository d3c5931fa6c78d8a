"""Sources: collections with a form of their own, such as treebanks and parallel sentences. One file each (`prepare.py`
has the contract)."""
