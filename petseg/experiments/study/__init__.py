"""The study: many runs, each an independent process, and what they say together.

recipe.py   what is studied and what was expected of it, one TOML
plan.py     the runs that follow from it, each once
match.py    shapes of equal parameters or equal latency
run.py      makes the runs that are missing; merges shards
"""
