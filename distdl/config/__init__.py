"""What a YAML file may say. `yaml_file.py` reads it and puts key=value on top, `check.py` finds the mistakes, `load.py`
does both."""
