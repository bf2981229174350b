"""transact's ``SyncDatabase``: ``db.session()`` where something is written, ``db.session(read_only=True)`` where it is not."""

from typing import Annotated

from fastapi import FastAPI
from sqlalchemy.orm import Session

from benchmarks.apps._routes import POOL_SIZE
from benchmarks.apps._sync_routes import add_routes
from transact.fastapi import SyncDatabase


def make_app(url: str, pool_size: int = POOL_SIZE) -> FastAPI:
    db = SyncDatabase(url, pool_size=pool_size, max_overflow=0)
    app = FastAPI(lifespan=db.lifespan)
    db.install(app)
    add_routes(app, Annotated[Session, db.session()], reading=Annotated[Session, db.session(read_only=True)])
    return app
