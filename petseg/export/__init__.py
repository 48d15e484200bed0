"""Models as files for other runtimes, checked against the original."""
