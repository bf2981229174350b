"""The application: ``TRANSACT_URL=sqlite+aiosqlite:///shop.db uvicorn examples.shop.app:app`` (see ``migrate.py`` first)."""

from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from transact.fastapi import Problem

from . import orders, products, registration, users
from .database import db
from .problems import install_problems

app = FastAPI(
    title="Shop",
    description="People register, user and profile together or not at all; an order takes its goods whole or fails whole.",
    lifespan=db.lifespan,
)

# What clients are told when a constraint is broken, by its name. Anything else gets a general text, and no detail of the
# database ever leaves the log.
db.install(
    app,
    problems={
        "uq_users_username": Problem(400, detail="Username already exists", fields=("username",)),
        "uq_users_email": Problem(400, detail="Email already exists", fields=("email",)),
        "ck_products_stock": Problem(409, detail="Not enough in stock"),
    },
)
install_problems(app)

for part in (registration, users, orders, products):
    app.include_router(part.router)


@app.get("/", include_in_schema=False)
async def documentation() -> RedirectResponse:
    """Lead to the interactive documentation."""
    return RedirectResponse("/docs")
