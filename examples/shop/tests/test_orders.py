"""Manual mode: an order takes its goods whole or fails whole."""

from fastapi.testclient import TestClient

from transact import errors
from transact.pytest_plugin import DatabaseUnderTest


def a_customer(shop: TestClient) -> int:
    profile = {"full_name": "Ada Lovelace"}
    answer = shop.post("/register/", json={"username": "ada", "email": "ada@example.com", "profile": profile})
    return int(answer.json()["user_id"])


def a_product(shop: TestClient, stock: int) -> int:
    return int(shop.post("/products/", json={"name": "Umbrella", "stock": stock}).json()["product_id"])


def order(shop: TestClient, customer: int, product: int, quantity: int) -> int:
    lines = [{"product_id": product, "quantity": quantity}]
    return int(shop.post(f"/orders/?user_id={customer}", json={"lines": lines}).status_code)


def stock(shop: TestClient) -> list[int]:
    return [product["stock"] for product in shop.get("/products/").json()]


def test_the_last_piece_is_sold_once(shop: TestClient) -> None:
    customer, product = a_customer(shop), a_product(shop, stock=1)
    assert order(shop, customer, product, 1) == 201
    assert order(shop, customer, product, 1) == 409
    assert stock(shop) == [0]


def test_an_order_whose_commit_fails_gives_its_goods_back(shop: TestClient, database: DatabaseUnderTest) -> None:
    customer, product = a_customer(shop), a_product(shop, stock=5)
    database.faults.fail_commit(errors.SerializationFailure)
    assert order(shop, customer, product, 2) == 503
    assert stock(shop) == [5]
