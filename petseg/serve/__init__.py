"""`petseg serve`: a page, an API and the published comparison, on this machine alone.

make_app(config)     the application, for any ASGI server
serve(config)        the application on a socket, until Ctrl-C
"""

from petseg.serve.app import make_app
from petseg.serve.server import serve

__all__ = ["make_app", "serve"]
