"""What is compared: the modules of ``benchmarks/apps``, and what the peers among them have to be installed from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """Another library: its requirement, the lowest Python it takes, and the packages whose pinned version it refuses."""

    requirement: str
    python: str | None = None
    refuses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """``name`` is the module in ``benchmarks.apps``; ``shown`` is what the tables say; ``paths`` its routes, if not all."""

    name: str
    shown: str
    peer: Peer | None = None
    paths: tuple[str, ...] = ()

    def serves(self, path: str) -> bool:
        """Whether ``path`` can be measured."""
        return not self.paths or path in self.paths


def _peer(requirement: str, python: str | None = None, refuses: tuple[str, ...] = ()) -> Variant:
    distribution = requirement.partition("==")[0]
    return Variant(distribution.replace("-", "_"), distribution, Peer(requirement, python, refuses))


EMPTY = Variant("empty", "FastAPI alone", paths=("/idle", "/empty"))
ASYNCPG = Variant("asyncpg_pool", "asyncpg with its own pool")
CORE = Variant("core", "SQLAlchemy Core by hand")
GET_DB = Variant("get_db", "`get_db`")
CONTROL = Variant("get_db_function", '`get_db`, `scope="function"`')  # what everything is compared with
BARE = Variant("bare", "a bare middleware")
TRANSACT = Variant("transact", "**transact**, `db.session()`")
CONNECTION = Variant("transact_connection", "**transact**, `db.connection()`")

OURS = (EMPTY, ASYNCPG, CORE, GET_DB, CONTROL, BARE, TRANSACT, CONNECTION)
#: The least that shows every measurement at work.
FEW = (EMPTY, ASYNCPG, CONTROL, TRANSACT, CONNECTION)
PEERS = (
    _peer("fastapi-transactional==0.2.*"),
    _peer("context-async-sqlalchemy==2.1.*"),
    _peer("fastapi-async-sqlalchemy==0.8.*", python="3.12"),
    _peer("fastapi-toolsets==6.0.*"),
    _peer("advanced-alchemy==1.12.*"),
    _peer("fastapi-sqla==4.0.*", refuses=("fastapi",)),
)
