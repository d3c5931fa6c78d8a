"""Sources: what people's own files are written in, such as CSV and folders of pictures. One file each (`prepare.py` has
the contract)."""
