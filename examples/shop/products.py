"""Connection mode: automatic mode without the ORM. SQL, or SQLAlchemy's Core, inside the request's transaction."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter
from sqlalchemy import RowMapping, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from .database import db
from .schemas import NewProduct, ProductCreated, StoredProduct
from .tables import Product

Connection = Annotated[AsyncConnection, db.connection()]
ReadConnection = Annotated[AsyncConnection, db.connection(read_only=True)]

router = APIRouter(prefix="/products", tags=["products: connection mode"])


@router.post("/", status_code=201)
async def create_product(product: NewProduct, connection: Connection) -> ProductCreated:
    """Add a product."""
    inserted = insert(Product).values(name=product.name, stock=product.stock).returning(Product.id)
    return ProductCreated(product_id=(await connection.execute(inserted)).scalar_one())


@router.get("/", response_model=list[StoredProduct])
async def list_products(connection: ReadConnection) -> Sequence[RowMapping]:
    """List the products."""
    found = await connection.execute(select(Product.id, Product.name, Product.stock).order_by(Product.id))
    return found.mappings().all()
