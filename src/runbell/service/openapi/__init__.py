"""How the service describes itself: an OpenAPI document of its routes, and a page to read it.

Nothing here is said a second time: the document is made from the table of routes and the types of
`wire`, the page from the document.
"""

from runbell.service.openapi.published import PATHS, published

__all__ = ["PATHS", "published"]
