"""Routes: the models that are served."""

from __future__ import annotations

from typing import Any

from runbell.service.operations import refusals
from runbell.service.routes.routing import Call, Route
from runbell.service.wire.objects import ListPage, ModelObject
from runbell.service.wire.pages import page_of

__all__ = ["ROUTES"]


async def _list(call: Call[None, None]) -> ListPage[Any]:
    return page_of((await call.ctx.backends.known(), False), _model, id_of=str)


async def _retrieve(call: Call[None, None]) -> ModelObject:
    name = call.path["model"]
    backends = call.ctx.backends
    if backends.find(name) is None:
        raise refusals.model_not_found(name, backends.models())
    return _model(name)


def _model(name: str) -> ModelObject:
    # Nobody knows when a model was made; the field may not be missing.
    return ModelObject(id=name, created=0, owned_by="runbell")


ROUTES = (
    Route(
        "GET",
        "/v1/models",
        _list,
        "List the models that are served",
        operation="listModels",
        answer=ListPage[ModelObject],
    ),
    Route(
        "GET",
        "/v1/models/{model:path}",
        _retrieve,
        "Retrieve a model",
        operation="retrieveModel",
        answer=ModelObject,
        about="A model's name may hold slashes.",
    ),
)
