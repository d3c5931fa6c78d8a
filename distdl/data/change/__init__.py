"""Data sets and tables that are made of others: rows shared out again, sets merged, and what was prepared written as
files."""
