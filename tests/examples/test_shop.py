"""The shop keeps its promises on every engine."""

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from tests.engines import Observer
from tests.examples.serving import import_shop
from transact import errors

PROBLEM = "application/problem+json"


def account(name: str = "ada", email: str | None = None, **profile: object) -> dict[str, Any]:
    return {"username": name, "email": email or f"{name}@example.com", "profile": profile}


async def a_user(shop: httpx.AsyncClient) -> int:
    return (await shop.post("/register/", json=account())).json()["user_id"]


async def a_product(shop: httpx.AsyncClient, stock: int) -> int:
    return (await shop.post("/products/", json={"name": "Umbrella", "stock": stock})).json()["product_id"]


def lines(*lines: tuple[int, int]) -> dict[str, Any]:
    return {"lines": [{"product_id": product, "quantity": quantity} for product, quantity in lines]}


OTHER_FORMS = [
    account("ada", user_id=1),
    account("ada", full_name=7),
    account("ada") | {"id": 1},
    account("ada") | {"profile": None},
    account("ada") | {"profile": []},
    {"username": "ada", "email": "ada@example.com"},
    account("", "ada@example.com"),
    account("x" * 201, "ada@example.com"),
    account("ada", "not an address"),
    account("ada", f"{'x' * 250}@example.com"),
    account("ada", bio="x" * 10_001),
    [],
    None,
]

UNSTORABLE = [
    (rb'{"username": "a\u0000b", "email": "a@b", "profile": {}}', "NUL"),
    (rb'{"username": "\ud800", "email": "a@b", "profile": {}}', "surrogate"),
    (rb'{"username": "a", "email": "\udc00@b", "profile": {}}', "surrogate"),
    (rb'{"username": "a", "email": "a@b", "profile": {"bio": "\ud83d"}}', "surrogate"),
    (rb'{"username": "a", "email": "a@b", "profile": {"\ud800": 1}}', "unicode"),
    (rb'{"username": "a", "email": "a@b", "profile": {}, "\ud800": 1}', "unicode"),
    (b'{"username": "\xff", "email": "a@b", "profile": {}}', "parsing the body"),
    (b'{"username": NaN, "email": "a@b", "profile": {}}', "valid string"),
    (b'{"username": ' + b"9" * 5000 + b"}", "parsing the body"),
    (b"[" * 100_000, "parsing the body"),
    (b"{", "JSON"),
]

BAD_ORDERS = [
    (99, {}, 404),
    (None, lines((99, 1)), 404),
    ("0", {}, 422),
    (10**30, {}, 422),
    (None, lines((1, 0)), 422),
    (None, lines((1, -1)), 422),
    (None, lines((1, 10**30)), 422),
    (None, lines((0, 1)), 422),
    (None, lines((1, 2**31 - 1)), 409),
    (None, lines(), 422),
    (None, lines(*[(1, 1)] * 101), 422),
    (None, {"lines": [{"product_id": 1, "quantity": 1, "price": 0}]}, 422),
]


# Automatic mode


async def test_a_user_is_created_by_a_statement_with_parameters(shop: httpx.AsyncClient, observer: Observer) -> None:
    names = ["ada", "o'hara", "x'); DROP TABLE users; --", '"', "100%_\\"]
    for name in names:
        response = await shop.post("/users/", params={"name": name})
        assert (response.status_code, response.json()) == (201, {"status": "created"})
    assert observer.rows("SELECT username, email FROM users ORDER BY id") == [(name, None) for name in names]


async def test_a_taken_user_name_is_a_400_in_automatic_mode(shop: httpx.AsyncClient, observer: Observer) -> None:
    await shop.post("/users/", params={"name": "ada"})
    response = await shop.post("/users/", params={"name": "ada"})
    assert (response.status_code, response.json()["detail"]) == (400, "Username already exists")
    assert observer.scalar("SELECT count(*) FROM users") == 1


async def test_pages_hold_every_user_once_and_in_order(shop: httpx.AsyncClient) -> None:
    for number in range(7):
        await shop.post("/users/", params={"name": f"user {number}"})
    seen, after = [], 0
    while page := (await shop.get("/users/", params={"after": after, "limit": 3})).json():
        assert len(page) <= 3
        seen += [user["username"] for user in page]
        after = page[-1]["id"]
    assert seen == [f"user {number}" for number in range(7)]


async def test_a_search_term_means_itself(shop: httpx.AsyncClient) -> None:
    names = {"ada", "100%", "a_b", "axb", "c/d", "e\\f"}
    for name in names:
        await shop.post("/users/", params={"name": name})
    terms = {"": names, "ADA": {"ada"}, "%": {"100%"}, "_": {"a_b"}, "/": {"c/d"}, "\\": {"e\\f"}, "' OR 1=1 --": set()}
    for term, found in terms.items():
        page = (await shop.get("/users/", params={"q": term})).json()
        assert {user["username"] for user in page} == found, term


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
async def test_a_number_that_nothing_has_is_the_clients_mistake(shop: httpx.AsyncClient) -> None:
    for number in ("0", "-1", str(2**31), "9" * 30, "9" * 5000, "x"):
        for path in (f"/users/{number}", f"/orders/{number}", f"/users/?limit={number}"):
            assert (await shop.get(path)).status_code == 422, path
    for path in ("/users/?after=-1", f"/users/?after={10**30}", "/users/?limit=201", f"/users/?q={'x' * 201}"):
        assert (await shop.get(path)).status_code == 422, path
    for path in ("/users/99", "/orders/99", f"/users/{2**31 - 1}"):
        assert (await shop.get(path)).status_code == 404, path


# Decorator mode


async def test_a_registration_stores_the_user_with_the_profile(shop: httpx.AsyncClient, observer: Observer) -> None:
    response = await shop.post(
        "/register/", json=account("ada", full_name="Ada Lovelace", bio="First\r\n\tprogrammer ")
    )
    assert response.status_code == 201
    id_ = response.json()["user_id"]
    profile = {"full_name": "Ada Lovelace", "bio": "First\r\n\tprogrammer "}
    stored = {"id": id_, "username": "ada", "email": "ada@example.com", "profile": profile}
    assert (await shop.get(f"/users/{id_}")).json() == stored
    assert observer.rows("SELECT user_id, full_name, bio FROM profiles") == [(id_, *profile.values())]


@pytest.mark.parametrize(
    ("again", "detail", "field"),
    [
        (account("ada", "other@example.com"), "Username already exists", "username"),
        (account("other", "ada@example.com"), "Email already exists", "email"),
    ],
)
async def test_what_is_taken_is_told_apart_by_its_constraint(
    shop: httpx.AsyncClient, observer: Observer, again: Mapping[str, Any], detail: str, field: str
) -> None:
    await a_user(shop)
    response = await shop.post("/register/", json=again)
    assert (response.status_code, response.headers["content-type"]) == (400, PROBLEM)
    assert (response.json()["detail"], response.json()["fields"]) == (detail, [field])
    assert observer.scalar("SELECT count(*) FROM users") == observer.scalar("SELECT count(*) FROM profiles") == 1


async def test_a_profile_that_cannot_be_stored_leaves_no_user_and_nothing_leaks(
    shop: httpx.AsyncClient, observer: Observer
) -> None:
    observer.execute("ALTER TABLE profiles RENAME TO elsewhere")
    response = await shop.post("/register/", json=account("ada", bio="secret"))
    assert (response.status_code, response.headers["content-type"]) == (500, PROBLEM)
    assert not [word for word in ("profiles", "INSERT", "secret", "ada", "rror:") if word in response.text]
    assert observer.scalar("SELECT count(*) FROM users") == 0


async def test_a_decorated_function_joins_the_transaction_of_its_caller(
    shop: httpx.AsyncClient, observer: Observer, database_url: str
) -> None:
    db = import_shop(database_url, "database").db
    new_account = import_shop(database_url, "schemas").NewAccount
    register_account = import_shop(database_url, "registration").register_account
    with pytest.raises(ZeroDivisionError):
        async with db.transaction():
            await register_account(new_account.model_validate(account("ada")))
            raise ZeroDivisionError
    assert observer.scalar("SELECT count(*) FROM users") == 0
    assert await register_account(new_account.model_validate(account("ada"))) > 0
    assert observer.scalar("SELECT count(*) FROM users") == 1


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
async def test_a_registration_of_another_form_is_refused(shop: httpx.AsyncClient, observer: Observer) -> None:
    for body in OTHER_FORMS:
        response = await shop.post("/register/", json=body)
        assert response.status_code == 422, body
        assert all(mistake["msg"] and "input" not in mistake for mistake in response.json()["detail"])
    assert observer.scalar("SELECT count(*) FROM users") == 0


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
async def test_text_that_cannot_be_stored_as_it_came_is_refused_with_the_reason(
    shop: httpx.AsyncClient, observer: Observer
) -> None:
    for body, reason in UNSTORABLE:
        response = await shop.post("/register/", content=body, headers={"content-type": "application/json"})
        assert response.status_code in {400, 422}, body[:99]
        assert reason in str(response.json()["detail"])
    assert observer.scalar("SELECT count(*) FROM users") == 0


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
async def test_a_query_that_is_no_text_is_refused_with_the_reason(shop: httpx.AsyncClient) -> None:
    for escaped, reason in (("a%00b", "NUL"), ("%ff", "UTF-8"), ("%ED%A0%80", "UTF-8")):
        for response in (await shop.get(f"/users/?q={escaped}"), await shop.post(f"/users/?name={escaped}")):
            assert response.status_code == 422, escaped
            assert reason in response.json()["detail"][0]["msg"]


# Manual mode


async def test_an_order_takes_its_goods_out_of_stock(shop: httpx.AsyncClient, observer: Observer) -> None:
    user, umbrella, coat = await a_user(shop), await a_product(shop, 5), await a_product(shop, 5)
    response = await shop.post("/orders/", params={"user_id": user}, json=lines((coat, 2), (umbrella, 1), (coat, 1)))
    assert response.status_code == 201
    order = (await shop.get(f"/orders/{response.json()['order_id']}")).json()
    assert order["user_id"] == user
    ordered = sorted((line["product_id"], line["quantity"]) for line in order["lines"])
    assert ordered == [(umbrella, 1), (coat, 1), (coat, 2)]
    assert observer.rows("SELECT stock FROM products ORDER BY id") == [(4,), (2,)]


async def test_an_order_without_a_body_is_one_piece_of_the_first_product(
    shop: httpx.AsyncClient, observer: Observer
) -> None:
    user, umbrella = await a_user(shop), await a_product(shop, 1)
    assert (await shop.post("/orders/", params={"user_id": user})).status_code == 201
    assert observer.rows("SELECT product_id, quantity FROM order_lines") == [(umbrella, 1)]


async def test_an_order_that_lacks_one_thing_fails_whole(shop: httpx.AsyncClient, observer: Observer) -> None:
    user, umbrella, coat = await a_user(shop), await a_product(shop, 5), await a_product(shop, 1)
    response = await shop.post("/orders/", params={"user_id": user}, json=lines((umbrella, 2), (coat, 2)))
    assert (response.status_code, response.headers["content-type"]) == (409, PROBLEM)
    assert "not enough in stock" in response.json()["detail"]
    assert observer.rows("SELECT stock FROM products ORDER BY id") == [(5,), (1,)]
    assert observer.scalar("SELECT count(*) FROM orders") == observer.scalar("SELECT count(*) FROM order_lines") == 0


async def test_an_order_that_the_database_refuses_halfway_is_rolled_back(
    shop: httpx.AsyncClient, observer: Observer
) -> None:
    user, umbrella = await a_user(shop), await a_product(shop, 5)
    observer.execute("ALTER TABLE order_lines RENAME TO elsewhere")
    response = await shop.post("/orders/", params={"user_id": user}, json=lines((umbrella, 2)))
    assert (response.status_code, response.headers["content-type"]) == (500, PROBLEM)
    assert observer.scalar("SELECT stock FROM products") == 5
    assert observer.scalar("SELECT count(*) FROM orders") == 0


async def test_the_last_piece_is_sold_once(shop: httpx.AsyncClient, observer: Observer) -> None:
    user, umbrella = await a_user(shop), await a_product(shop, 1)
    order = {"params": {"user_id": user}, "json": lines((umbrella, 1))}
    responses = await asyncio.gather(*(shop.post("/orders/", **order) for _ in range(6)))
    assert sorted(response.status_code for response in responses) == [201, 409, 409, 409, 409, 409]
    assert observer.scalar("SELECT stock FROM products") == 0
    assert observer.scalar("SELECT count(*) FROM orders") == 1


async def test_orders_for_the_same_things_in_opposite_order_do_not_deadlock(
    shop: httpx.AsyncClient, observer: Observer
) -> None:
    user, one, two = await a_user(shop), await a_product(shop, 20), await a_product(shop, 20)
    bodies = [lines((one, 1), (two, 1)), lines((two, 1), (one, 1))] * 5
    responses = await asyncio.gather(*(shop.post("/orders/", params={"user_id": user}, json=body) for body in bodies))
    assert {response.status_code for response in responses} == {201}
    assert observer.rows("SELECT stock FROM products") == [(10,), (10,)]


async def test_a_stock_below_zero_is_refused_by_the_database_too(
    shop: httpx.AsyncClient, observer: Observer, database_url: str
) -> None:
    await a_product(shop, 1)
    db, update = import_shop(database_url, "database").db, import_shop(database_url, "orders").update
    product = import_shop(database_url, "tables").Product
    with pytest.raises(errors.CheckViolation) as caught:
        async with db.transaction() as session:
            await session.execute(update(product).values(stock=-1))
    assert caught.value.constraint == "ck_products_stock"
    assert observer.scalar("SELECT stock FROM products") == 1


@pytest.mark.engines("sqlite", "pg18-asyncpg", "mariadb")
async def test_an_order_for_what_cannot_be_ordered_is_refused(shop: httpx.AsyncClient, observer: Observer) -> None:
    known = await a_user(shop)
    await a_product(shop, 5)
    for user, body, status in BAD_ORDERS:
        response = await shop.post("/orders/", params={"user_id": user or known}, json=body)
        assert response.status_code == status, (user, body)
        assert response.json()["detail"]
    assert observer.scalar("SELECT stock FROM products") == 5
    assert observer.scalar("SELECT count(*) FROM orders") == 0


# Connection mode, and the rest


async def test_products_are_listed_as_they_were_added(shop: httpx.AsyncClient) -> None:
    umbrella = await a_product(shop, 3)
    assert (await shop.get("/products/")).json() == [{"id": umbrella, "name": "Umbrella", "stock": 3}]


@pytest.mark.engines("sqlite")
async def test_the_root_leads_to_the_documentation(shop: httpx.AsyncClient) -> None:
    response = await shop.get("/", follow_redirects=True)
    assert (response.status_code, response.url.path) == (200, "/docs")
    documented = (await shop.get("/openapi.json")).json()["paths"]
    assert {"/users/", "/users/{id}", "/register/", "/orders/", "/orders/{id}", "/products/"} == documented.keys()
