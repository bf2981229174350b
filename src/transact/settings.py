"""``Database.from_env``: the arguments of a database from environment variables."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from transact.errors import ConfigurationError
from transact.options import Isolation, Retry, is_seconds


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
    two_phase: bool = False
    name: str = "default"
    echo: bool = False


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


#: What an argument of ``Database`` has to be, and what to write instead.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "pool_size": (lambda value: _is_count(value, 1), "a number of connections from 1 up"),
    "max_overflow": (lambda value: _is_count(value, 0), "a number of connections from 0 up"),
    "pool_timeout": (is_seconds, "seconds from 0 up"),
    "max_waiting": (lambda value: value is None or _is_count(value, 0), "a number of requests from 0 up, or None"),
    "isolation": (lambda value: value is None or isinstance(value, Isolation), "a member of Isolation"),
    "retry": (lambda value: value is None or isinstance(value, Retry), "a Retry, such as Retry(attempts=5)"),
    "timeout": (lambda value: value is None or (is_seconds(value) and value > 0), "seconds above 0, or None"),
    "verify_commit": (lambda value: isinstance(value, bool), "True or False"),
    "two_phase": (lambda value: isinstance(value, bool), "True or False"),
}


def check_arguments(**arguments: object) -> None:
    """Raise ``ConfigurationError`` that names the first of a database's arguments that cannot work."""
    for name, value in arguments.items():
        fits, instead = _CHECKS[name]
        if not fits(value):
            raise ConfigurationError(f"{name}={value!r}: write {instead}")


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
