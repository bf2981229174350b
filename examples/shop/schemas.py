"""What clients send and what they get."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

_SURROGATE = re.compile("[\ud800-\udfff]")


def _storable(text: str) -> str:
    """Refuse what cannot be stored, on every engine, just as it came."""
    if "\0" in text:  # PostgreSQL has no NUL in text (manual, section 8.3)
        raise PydanticCustomError("nul_in_text", "Text cannot contain the character NUL (U+0000)")
    if _SURROGATE.search(text):  # JSON can write half of a pair, UTF-8 cannot (RFC 3629, section 3)
        raise PydanticCustomError("surrogate_in_text", "Text cannot contain a surrogate without its other half")
    if "\ufffd" in text:  # what a decoder writes for bytes that it could not read, so something is lost already
        raise PydanticCustomError("broken_text", "Text contains U+FFFD: it was probably not sent as valid UTF-8")
    return text


StorableText = Annotated[str, AfterValidator(_storable)]
Name = Annotated[StorableText, Field(min_length=1, max_length=200)]
# The length is RFC 5321's (section 4.5.3.1.3, without the brackets). Whether an address works, only a mail can tell.
Email = Annotated[StorableText, Field(max_length=254, pattern=r"^[^@\s]+@[^@\s]+$")]
SearchTerm = Annotated[StorableText, Field(max_length=200)]
# What an INTEGER column holds: a number beyond it is a mistake of the client, not a failure of the database.
Number = Annotated[int, Field(ge=0, le=2**31 - 1)]
Id = Annotated[Number, Field(ge=1)]


class Strict(BaseModel):
    """The base of what clients send: an unknown field is a mistake, and never reaches a statement."""

    model_config = ConfigDict(extra="forbid")


class ProfileFields(Strict):
    full_name: Annotated[StorableText, Field(max_length=200)] = ""
    bio: Annotated[StorableText, Field(max_length=10_000)] = ""


class NewAccount(Strict):
    username: Name
    email: Email
    profile: ProfileFields


class NewProduct(Strict):
    name: Name
    stock: Number


class OrderedLine(Strict):
    product_id: Id = 1
    quantity: Id = 1


class NewOrder(Strict):
    lines: Annotated[list[OrderedLine], Field(min_length=1, max_length=100)] = [OrderedLine()]


class Stored(BaseModel):
    """The base of what clients get, read off a row."""

    model_config = ConfigDict(from_attributes=True)


class StoredProfile(Stored):
    full_name: str
    bio: str


class StoredUser(Stored):
    id: int
    username: str
    email: str | None
    profile: StoredProfile | None


class StoredProduct(Stored):
    id: int
    name: str
    stock: int


class StoredLine(Stored):
    product_id: int
    quantity: int


class StoredOrder(Stored):
    id: int
    user_id: int
    lines: list[StoredLine]


class Status(BaseModel):
    status: str


class Registered(BaseModel):
    user_id: int


class ProductCreated(BaseModel):
    product_id: int


class OrderCreated(BaseModel):
    order_id: int
