"""A study of Optuna that several processes, on several machines, work on: a queue of trials of which each is done once.

All trials are put into the queue when the study is made, so that as many are done as were asked for, however many workers take
part. A worker that is killed is noticed: at once by whoever works on the same machine, and elsewhere after a while without a
heartbeat, where the storage keeps these (all but a journal). Its trial goes back into the queue.

Source of the trials' values: the multi-objective tree-structured Parzen estimator of Optuna (Ozaki et al., GECCO 2020).
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import BadInput, MissingPackage, NotWritten, extra
from exporters.standalone import leftovers

if TYPE_CHECKING:
    import optuna

_BEAT_S, _GRACE_S = 30, 150
"""Seconds between heartbeats, and after which a worker without one is taken for dead."""
_WAIT_S = 2
_RETRIES = 3
_RANDOM = 8
"""Trials whose values are drawn before any is estimated from the others."""
_WORKER = "worker"


@dataclass(frozen=True)
class Study:
    """An open study.

    Attributes:
        optuna: Optuna's own.
        storage: where it is kept.
    """

    optuna: optuna.Study
    storage: optuna.storages.BaseStorage

    @property
    def facts(self) -> dict[str, Any]:
        """What was written down when it was made."""
        return self.optuna.user_attrs

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """All of them, in the order in which they were put into the queue."""
        with answering():
            return self.optuna.get_trials()

    def next(self, seed: int) -> optuna.Trial | None:
        """The next trial of the queue, which nobody else gets; None where nothing is left to do.

        Args:
            seed: of the values that are tried; the same values come whoever gets a trial, as far as those before it are the same.
        """
        while (found := self._popped(seed)) is None and self._others:
            time.sleep(_WAIT_S)  # what a worker leaves behind when it dies is done here
        return found

    def _popped(self, seed: int) -> optuna.Trial | None:
        import optuna

        with answering():
            self._take_up()
            for waiting in self.optuna.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
                with suppress(optuna.exceptions.UpdateFinishedTrialError):
                    if self.storage.set_trial_state_values(waiting._trial_id, optuna.trial.TrialState.RUNNING):
                        self.optuna.sampler = _sampler(seed * 100_003 + waiting.number)
                        trial = optuna.Trial(self.optuna, waiting._trial_id)
                        trial.set_user_attr(_WORKER, leftovers.mark())
                        return trial
        return None

    @property
    def _others(self) -> int:
        """Trials that other workers are at."""
        import optuna

        with answering():
            return len(self.optuna.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)))

    @contextmanager
    def beating(self, trial: optuna.Trial) -> Generator[None]:
        """Other workers see that this trial is being worked on; one that is interrupted goes back into the queue."""
        done = threading.Event()
        thread = threading.Thread(target=self._beat, args=(trial._trial_id, done), daemon=True)
        thread.start()
        try:
            yield
        except KeyboardInterrupt:
            with suppress(Exception):
                self._back(trial._trial_id, _again(None))
            raise
        finally:
            done.set()
            thread.join()

    def tell(self, trial: optuna.Trial, values: Sequence[float] | None, facts: Mapping[str, Any], pruned: bool = False) -> None:
        """What came of a trial: its values, or that there are none, with what is to be known of it."""
        from optuna.trial import TrialState

        with answering():
            for name, value in facts.items():
                trial.set_user_attr(name, value)
            state = TrialState.COMPLETE if values is not None else TrialState.PRUNED if pruned else TrialState.FAIL
            self.optuna.tell(trial, values, state, skip_if_finished=True)

    def _beat(self, number: int, done: threading.Event) -> None:
        beat = getattr(self.storage, "record_heartbeat", None)
        while beat is not None:
            with suppress(Exception):  # a storage that is away for a moment; the next beat tells
                beat(number)
            if done.wait(_BEAT_S):
                return

    def _take_up(self) -> None:
        """Trials of dead workers go back into the queue."""
        import optuna

        with _as_it_is():
            optuna.storages.fail_stale_trials(self.optuna)
        for trial in self.optuna.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            if leftovers.dead(trial.user_attrs.get(_WORKER, "")):
                self._back(trial._trial_id, _again(_RETRIES))

    def _back(self, number: int, again: Any) -> None:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        with suppress(UpdateFinishedTrialError):
            if self.storage.set_trial_state_values(number, TrialState.FAIL):
                again(self.optuna, self.storage.get_trial(number))


def made(place: str, name: str, trials: int, first: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> Study:
    """A new study with all its trials in the queue; `first` are the values of the first ones.

    Raises:
        BadInput: no trials, a storage that cannot be reached, or a study of this name that is there already.
        MissingPackage: Optuna, or what the storage needs, is not installed.
    """
    if trials < 1:
        raise BadInput(f"--trials is {trials}; needed is one or more.")
    optuna = _optuna()
    storage = _storage(place)
    with answering(place):
        try:
            study = optuna.create_study(storage=storage, study_name=name, directions=["minimize", "minimize"])
        except optuna.exceptions.DuplicatedStudyError:
            raise BadInput(
                f"There is a study '{name}' in {shown(place)} already. Add --join to work on it, or give another --study."
            ) from None
        for key, value in facts.items():
            study.set_user_attr(key, value)
        for number in range(trials):
            study.enqueue_trial(dict(first[number]) if number < len(first) else {})
    return Study(study, storage)


def joined(place: str, name: str) -> Study:
    """A study that somebody made.

    Raises:
        BadInput: there is none of this name, or the storage cannot be reached.
    """
    optuna = _optuna()
    storage = _storage(place)
    with answering(place):
        try:
            return Study(optuna.load_study(storage=storage, study_name=name), storage)
        except KeyError:
            known = ", ".join(one.study_name for one in optuna.get_all_study_summaries(storage)) or "none"
            raise BadInput(
                f"There is no study '{name}' in {shown(place)}, which has: {known}. Leave --join out to make it."
            ) from None


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
        said = str(error.__cause__ or error).strip().splitlines()[0:1]
        told = said[0].rstrip(".") if said else type(error).__name__
        if place:
            raise BadInput(
                f"The storage {shown(place)} cannot be used ({told}). See that it runs, or give another --storage."
            ) from error
        raise NotWritten(
            f"The storage of the study does not answer any more ({told}). Runs that are finished are in their folders; repeat "
            "the command with --join when it is back."
        ) from error


def shown(place: str) -> str:
    """A storage without its password."""
    if "://" not in place:
        return place
    with suppress(Exception):
        from sqlalchemy.engine import make_url

        return make_url(place).render_as_string(hide_password=True)
    return place.partition("://")[0] + "://..."


def _storage(place: str) -> optuna.storages.BaseStorage:
    optuna = _optuna()
    kind, colons, rest = place.partition("://")
    with answering(place):
        if not colons:
            from optuna.storages.journal import JournalFileBackend

            if not Path(place).expanduser().parent.is_dir():
                raise BadInput(f"The folder of --storage {place} does not exist. Make it, or give another place.")
            return optuna.storages.JournalStorage(JournalFileBackend(str(Path(place).expanduser())))
        if kind == "grpc":
            host, _, port = rest.rpartition(":")
            return optuna.storages.GrpcStorageProxy(host=host or rest, port=int(port) if host and port.isdigit() else 13000)
        how: dict[str, Any] = {"pool_pre_ping": True}
        if kind.startswith("sqlite"):
            how["connect_args"] = {"timeout": 60}  # seconds that a writer waits for another one
        beats = {"heartbeat_interval": _BEAT_S, "grace_period": _GRACE_S, "heartbeat_stale_trial_callback": _again(_RETRIES)}
        try:
            with _as_it_is():
                opened = optuna.storages.RDBStorage(place, engine_kwargs=how, **beats)
        except ImportError as error:
            raise MissingPackage(
                f"--storage {shown(place)} needs the driver of that database ({error}); for PostgreSQL: {extra('postgresql')}."
            ) from error
        if kind.startswith("sqlite"):
            _whole_transactions(opened.engine)
        return opened


def _whole_transactions(engine: Any) -> None:
    """A transaction has the file from its first look on: else two workers see the same trial waiting, and both take it."""
    from sqlalchemy import event

    def by_hand(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver begins only when something is written

    event.listen(engine, "connect", by_hand)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    engine.dispose()  # connections that were made before


def _again(most: int | None) -> Any:
    """Puts a trial back into the queue, unless it was put back so often: what kills a worker each time would kill all of them."""
    with _as_it_is():
        return _optuna().storages.RetryHeartbeatStaleTrialCallback(max_retry=most)


@contextmanager
def _as_it_is() -> Generator[None]:
    """Optuna calls heartbeats experimental, and has for years."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", _optuna().exceptions.ExperimentalWarning)
        yield


def _sampler(seed: int) -> Any:
    return _optuna().samplers.TPESampler(n_startup_trials=_RANDOM, seed=seed % 2**32)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingPackage(f"A search needs Optuna: {extra('tune')}.") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
