"""The data: the official archives, the prepared set, made pets for tests, a user's own folder."""
