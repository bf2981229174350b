"""``Database.from_env``: the arguments of a database from environment variables."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from transact.errors import ConfigurationError
from transact.options import Isolation


class Settings(BaseSettings):
    """What the environment may say. The names are those of ``Database``'s arguments; a missing one keeps its default."""

    model_config = SettingsConfigDict(env_prefix="TRANSACT_", extra="ignore", hide_input_in_errors=True)

    url: SecretStr
    pool_size: int = 20
    max_overflow: int = 10
    pool_timeout: float = 30.0
    max_waiting: int | None = None
    isolation: Isolation | None = None
    timeout: float | None = None
    verify_commit: bool = False
    name: str = "default"
    echo: bool = False


def arguments_from_env(prefix: str, *, given: Container[str] = ()) -> dict[str, Any]:
    """Read the variables and return arguments for ``Database``; a URL that is ``given`` need not be among them.

    Raises ``ConfigurationError`` that names each variable that is missing or wrong, and never a value.
    """
    try:
        instead = {"url": ""} if "url" in given else {}
        settings = Settings(_env_prefix=prefix, **instead)  # type: ignore[call-arg, arg-type]  # its own argument
    except ValidationError as error:
        problems = [
            f"{prefix}{'_'.join(map(str, e['loc'])).upper()}: "
            + ("is not set" if e["type"] == "missing" else str(e["msg"]))
            for e in error.errors(include_input=False, include_url=False)
        ]
        raise ConfigurationError("the environment does not describe a database; " + "; ".join(problems)) from None
    values = {name: getattr(settings, name) for name in settings.model_fields_set | {"url"}}
    values["url"] = settings.url.get_secret_value()
    return values
