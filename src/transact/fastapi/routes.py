"""What an application's routes say about themselves: which use a database, and which can only fail."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import fastapi.routing
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.routing import Mount

from transact import errors
from transact.fastapi.problems import KINDS, MEDIA_TYPE, SCHEMA, Problem, code_of


class Found(NamedTuple):
    """One route of an application: its whole path, the same as OpenAPI writes it, its class, and what it declares."""

    path: str
    path_format: str
    kind: type[Any]
    route: Any


def walk(routes: Any, prefix: str = "") -> Iterator[Found]:
    """Every route of an application with its whole path, those of mounted applications included."""
    # Newer FastAPI keeps an included router as one entry of app.routes, and this public function to look into it.
    contexts = getattr(fastapi.routing, "iter_route_contexts", iter)
    for route in contexts(list(routes)):
        original = getattr(route, "original_route", route)
        path = prefix + (getattr(route, "path", None) or "")
        if isinstance(original, Mount):
            yield from walk(original.routes or (), path)
        else:
            yield Found(path, prefix + (getattr(route, "path_format", None) or ""), type(original), route)


def _uses(route: Any, is_provider: Callable[[Any], bool]) -> bool:
    pending = [getattr(route, "dependant", None)]
    while pending:
        dependant = pending.pop()
        if dependant is not None:
            if is_provider(dependant.call):
                return True
            pending += dependant.dependencies
    return False


def _takes(route: Any, is_provider: Callable[[Any], bool]) -> bool:
    """Whether the endpoint itself has a parameter that is a session or connection."""
    return any(d.name is not None and is_provider(d.call) for d in route.dependant.dependencies)


def problems_of(application: Any, is_provider: Callable[[Any], bool]) -> list[str]:
    """One line for each route that asks for a session and can only fail, because its body runs when that has ended."""
    found = []
    for path, _, kind, route in walk(application.routes):
        websocket = issubclass(kind, APIWebSocketRoute)
        generator = issubclass(kind, APIRoute) and (
            inspect.isasyncgenfunction(route.endpoint) or inspect.isgeneratorfunction(route.endpoint)
        )
        # What a generator's dependencies do with a session is done before the response begins, and commits with it.
        if websocket and _uses(route, is_provider):
            found.append(
                f"{path}: a websocket has no response that commits; use `async with db.transaction()` per message"
            )
        elif generator and _takes(route, is_provider):
            found.append(
                f"{','.join(sorted(route.methods or ()))} {path}: a generator endpoint runs after its response has begun, when "
                "the request's session has ended; use `async with db.transaction()` inside it"
            )
    return found


def describe_problems(
    schema: dict[str, Any], application: Any, is_provider: Callable[[Any], bool], problems: dict[str, Problem]
) -> None:
    """Add to an OpenAPI document, on each route that uses the database, the problem documents that it may answer with."""
    kinds: dict[int, list[str]] = {}
    for cls, kind in KINDS.items():
        kinds.setdefault(kind.status, []).append(code_of(cls))
    for problem in problems.values():
        kinds.setdefault(problem.status, []).append("a constraint of this application")
    used = False
    for _, path, route_kind, route in walk(application.routes):
        if issubclass(route_kind, APIRoute) and _uses(route, is_provider):
            for method in route.methods or ():
                operation = schema.get("paths", {}).get(path, {}).get(method.lower())
                if operation is not None:
                    used = True
                    _describe(operation.setdefault("responses", {}), kinds)
    if used:
        schema.setdefault("components", {}).setdefault("schemas", {}).setdefault(SCHEMA.name, dict(SCHEMA.schema))


def _describe(responses: dict[str, Any], kinds: dict[int, list[str]]) -> None:
    for status, codes in sorted(kinds.items()):
        response = responses.setdefault(str(status), {"description": f"A problem: {', '.join(dict.fromkeys(codes))}"})
        content = response.setdefault("content", {})
        content.setdefault(MEDIA_TYPE, {"schema": {"$ref": f"#/components/schemas/{SCHEMA.name}"}})
        if status == KINDS[errors.PoolTimeout].status:
            response.setdefault("headers", {}).setdefault(
                "Retry-After", {"description": "Seconds to wait.", "schema": {"type": "integer"}}
            )
