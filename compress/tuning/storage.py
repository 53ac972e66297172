"""Where a study is kept: a database, a journal or a proxy, opened, and told in a sentence where it does not answer."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from compress.errors import BadInput, MissingPackage, NotWritten, extra
from compress.tuning.believed import readable
from compress.tuning.database import require_journal, require_plain
from compress.user import files

if TYPE_CHECKING:
    import optuna

BEAT_S, _GRACE_S = 30, 150
"""Seconds between heartbeats, and after which a worker without one is taken for dead."""
RETRIES = 3
"""How often a trial of a dead worker is taken up again."""


_SECRETS = frozenset({"password", "passwd", "pass", "pwd", "sslpassword", "token", "secret"})


@contextmanager
def answering(place: str = "") -> Generator[None]:
    """A storage that does not answer is told in a sentence: with a place it could not be opened, without it went away.

    Raises:
        BadInput: it cannot be opened.
        NotWritten: it went away.
    """
    import optuna

    gone: tuple[type[BaseException], ...] = (optuna.exceptions.StorageInternalError, OSError)
    with suppress(ImportError):
        from sqlalchemy.exc import SQLAlchemyError

        gone = (*gone, SQLAlchemyError)
    with suppress(ImportError):
        import grpc

        gone = (*gone, grpc.RpcError)
    try:
        yield
    except gone as error:
        details = getattr(error, "details", None)  # of gRPC, whose own text is a page
        said = str(details() if callable(details) else error.__cause__ or error).strip().splitlines()[0:1]
        told = said[0].rstrip(".") if said else type(error).__name__
        if place:
            raise BadInput(
                f"The storage {shown(place)} cannot be used ({told}). See that it runs, or give another --storage."
            ) from error
        raise NotWritten(
            f"The storage of the study does not answer any more ({told}). Runs that are finished are in their folders; repeat "
            "the command with --join when it is back."
        ) from error


_CONNECT_S = 20
"""Seconds in which a database has to answer that somebody wants in; the drivers' own default is to wait for ever."""


def shown(place: str) -> str:
    """A storage without its password."""
    if "://" not in place:
        return place
    with suppress(Exception):
        from sqlalchemy.engine import make_url

        address = make_url(place)
        hidden = {key: "***" if key.lower() in _SECRETS else value for key, value in address.query.items()}
        return address.set(query=hidden).render_as_string(hide_password=True)
    return place.partition("://")[0] + "://..."


def opened(place: str, new: bool = True) -> optuna.storages.BaseStorage:
    """A storage by its address, or the path of a journal; where it is a file it may be `new`.

    Raises:
        BadInput: it cannot be used.
        MissingPackage: what it needs is not installed.
    """
    optuna = the_library()
    kind, colons, rest = place.partition("://")
    file = rest.removeprefix("/").partition("?")[0] if kind.startswith("sqlite") else "" if colons else place
    if kind.startswith("sqlite") and file.startswith("file:"):
        raise BadInput(f"--storage is {place}; needed is the path itself: sqlite:///FILE.")
    if file and not new and not files.at_home(file).exists():
        raise BadInput(f"There is no --storage {place} to join. Leave --join out to make it, or give another one.")
    with answering(place), readable(shown(place)):
        if not colons:
            from optuna.storages.journal import JournalFileBackend

            journal = files.at_home(place)
            if not journal.parent.is_dir():
                raise BadInput(f"The folder of --storage {place} does not exist. Make it, or give another place.")
            require_journal(journal)
            return optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
        if kind == "grpc":
            return _proxy(place, *rest.rpartition(":")[::2])
        _require_address(place)
        how: dict[str, Any] = {"pool_pre_ping": True}
        if kind.startswith("sqlite"):
            if file and file != ":memory:":
                require_plain(files.at_home(file), new)
            how["connect_args"] = {"timeout": 60}  # seconds that a writer waits for another one
        elif kind.startswith(("postgresql", "mysql", "mariadb")) and not kind.endswith(("pg8000", "asyncpg")):
            how["connect_args"] = {"connect_timeout": _CONNECT_S}
        beats = {"heartbeat_interval": BEAT_S, "grace_period": _GRACE_S, "heartbeat_stale_trial_callback": again(RETRIES)}
        try:
            with as_it_is():
                opened = optuna.storages.RDBStorage(place, engine_kwargs=how, **beats)
        except ImportError as error:
            raise MissingPackage(
                f"--storage {shown(place)} needs the driver of that database ({error}); for PostgreSQL: {extra('postgresql')}."
            ) from error
        if kind.startswith("sqlite"):
            _whole_transactions(opened.engine)
        return opened


def _require_address(place: str) -> None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        make_url(place)
    except (ArgumentError, ValueError) as error:
        raise BadInput(
            f"--storage is {shown(place)}, which is no address of a database. Needed is one such as "
            "postgresql://USER@HOST:PORT/NAME or sqlite:///FILE."
        ) from error


def _proxy(place: str, host: str, port: str) -> optuna.storages.BaseStorage:
    if not host or "@" in host or not port.isdigit():
        raise BadInput(f"--storage is {shown(place)}; needed is grpc://HOST:PORT, such as grpc://server:13000.")
    try:
        with as_it_is():
            return the_library().storages.GrpcStorageProxy(host=host, port=int(port))
    except ImportError as error:
        raise MissingPackage(f"--storage {shown(place)} needs gRPC ({error}): pip install grpcio protobuf.") from error


def _whole_transactions(engine: Any) -> None:
    """A transaction has the file from its first look on: else two workers see the same trial waiting, and both take it."""
    from sqlalchemy import event

    def by_hand(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver begins only when something is written

    event.listen(engine, "connect", by_hand)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    engine.dispose()  # connections that were made before


def again(most: int | None) -> Any:
    """Puts a trial back into the queue, unless it was put back so often: what kills a worker each time would kill all of them."""
    with as_it_is():
        return the_library().storages.RetryHeartbeatStaleTrialCallback(max_retry=most)


@contextmanager
def as_it_is() -> Generator[None]:
    """Optuna calls heartbeats experimental, and has for years."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", the_library().exceptions.ExperimentalWarning)
        yield


def the_library() -> Any:
    """Optuna, which says nothing but errors.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingPackage(f"A search needs Optuna: {extra('tune')}.") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
