"""Annotation formats of other programs: what each module reads, and the folders that `convert` writes."""
