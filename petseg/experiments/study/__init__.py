"""The study: many runs, each an independent process, and what they say together.

recipe.py    what is studied and what was expected of it, one TOML
plan.py      the runs that follow from it, each once
match.py     shapes of equal parameters or equal latency
run.py       makes the runs that are missing
results.py   reads what they left, in a study's folder or as it was published
subsets.py   a part of the test images, or the border counted otherwise
findings.py  every number of the study's page
"""
