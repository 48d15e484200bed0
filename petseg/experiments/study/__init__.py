"""The study: many runs, each an independent process, and what they say together."""
