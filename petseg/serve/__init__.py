"""`petseg serve`: a page, an API and the published comparison, on this machine alone."""

from petseg.serve.app import make_app
from petseg.serve.server import serve

__all__ = ["make_app", "serve"]
