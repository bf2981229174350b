"""The one database of a measurement, by other drivers."""

from sqlalchemy.engine import make_url


def driven_by(driver: str, url: str) -> str:
    """The same database by ``postgresql+psycopg``, or by ``postgresql``: as bare drivers take it."""
    return make_url(url).set(drivername=driver).render_as_string(hide_password=False)
