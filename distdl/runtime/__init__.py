"""Where workers run: processes of this machine, or a Ray cluster; who watches them, and which failure is told."""
