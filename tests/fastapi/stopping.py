"""The application that a test stops while it answers: `python stopping.py` prints its port, then what each request reached.

Environment: APP_URL, the database; APP_PATIENCE, the seconds that uvicorn lets requests finish.
"""

import asyncio
import os
import socket
from typing import Annotated

import uvicorn
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from transact.fastapi import Database

INSERT = text("INSERT INTO words (text) VALUES (:word)")
db = Database(os.environ.get("APP_URL", "sqlite+aiosqlite://"), pool_size=5, max_overflow=0)
app = FastAPI(lifespan=db.lifespan)
db.install(app)
Session = Annotated[AsyncSession, db.session()]


@app.post("/answered")
async def answered(session: Session) -> None:
    await session.execute(INSERT, {"word": "answered a"})
    await session.execute(INSERT, {"word": "answered b"})


@app.post("/between")
async def between(session: Session) -> None:
    await session.execute(INSERT, {"word": "between a"})
    print("between", flush=True)  # noqa: T201  # the test reads it
    await asyncio.Event().wait()


@app.post("/unbegun")
async def unbegun(session: Session) -> None:
    print("unbegun", flush=True)  # noqa: T201
    await asyncio.Event().wait()
    await session.execute(INSERT, {"word": "unbegun a"})


@app.post("/committing")
async def committing(session: Session) -> None:
    await session.execute(INSERT, {"word": "committing a"})
    await session.execute(INSERT, {"word": "committing b"})

    async def slow() -> None:  # inside of what is shielded, after the data is stored
        print("committing", flush=True)  # noqa: T201
        await asyncio.sleep(0.3)
        async with db.transaction() as own:
            await own.execute(INSERT, {"word": "by hook"})

    db.after_commit(slow)


async def main() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)  # noqa: T201
    patience = int(os.environ["APP_PATIENCE"])
    config = uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=patience)
    await uvicorn.Server(config).serve([listening])


if __name__ == "__main__":
    asyncio.run(main())
