"""Manual mode: the route itself begins, commits and rolls back.

For the rare route that has to decide about its transaction in the middle. Whatever it leaves open is rolled back.
"""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from .database import db
from .problems import answers
from .schemas import Id, NewOrder, OrderCreated, OrderedLine, StoredOrder
from .tables import Order, OrderLine, Product, User

ManualSession = Annotated[AsyncSession, db.manual_session()]
ReadSession = Annotated[AsyncSession, db.session(read_only=True)]

router = APIRouter(prefix="/orders", tags=["orders: manual mode"])


@router.post("/", status_code=201, responses=answers(404, 409))
async def create_order(
    user_id: Annotated[Id, Query()], session: ManualSession, order: NewOrder | None = None
) -> OrderCreated:
    """Place an order and take its goods out of stock: all lines or none. Without a body: one piece of product 1."""
    # Two orders that lock the same products in different orders would wait for each other.
    lines = sorted((order or NewOrder()).lines, key=lambda line: line.product_id)
    await session.begin()
    try:
        await check_user(session, user_id)
        for line in lines:
            await take_from_stock(session, line)
        placed = Order(user_id=user_id, lines=[OrderLine(**line.model_dump()) for line in lines])
        session.add(placed)
        await session.commit()
    except Exception:
        await session.rollback()
        raise
    return OrderCreated(order_id=placed.id)


async def check_user(session: AsyncSession, user_id: int) -> None:
    """Answer 404 for an unknown user, which is clearer than the 409 of the foreign key."""
    if await session.get(User, user_id) is None:
        raise HTTPException(404, "User not found")


async def take_from_stock(session: AsyncSession, line: OrderedLine) -> None:
    """Lower the stock. The statement itself looks whether there is enough, so the last piece is sold once."""
    enough = (Product.id == line.product_id) & (Product.stock >= line.quantity)
    connection = await session.connection()
    taken = await connection.execute(update(Product).where(enough).values(stock=Product.stock - line.quantity))
    if taken.rowcount == 1:
        return
    if await session.get(Product, line.product_id) is None:
        raise HTTPException(404, f"Product {line.product_id} not found")
    raise HTTPException(409, f"Product {line.product_id}: not enough in stock")


@router.get("/{id}", response_model=StoredOrder, responses=answers(404))
async def read_order(id: Annotated[Id, Path()], session: ReadSession) -> Order:  # noqa: A002  # the name in the path
    """Read one order with its lines."""
    order = await session.get(Order, id)
    if order is None:
        raise HTTPException(404, "Order not found")
    return order
