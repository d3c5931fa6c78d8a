"""Sources: data that a formula or a library makes. One file each (`prepare.py` has the contract)."""
