"""A study of Optuna that several processes, on several machines, work on: a queue of trials of which each is done once.

All trials are put into the queue when the study is made, so that as many are done as were asked for, however many workers take
part. A worker that is killed is noticed: at once by whoever works on the same machine, and elsewhere after a while without a
heartbeat, where the storage keeps these (all but a journal). Its trial goes back into the queue.

Source of the trials' values: the multi-objective tree-structured Parzen estimator of Optuna (Ozaki et al., GECCO 2020).
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from compress.errors import BadInput
from compress.tuning.believed import MOST_TRIALS, readable, require_trials
from compress.tuning.storage import BEAT_S, RETRIES, again, answering, as_it_is, opened, shown, the_library
from exporters.standalone import leftovers

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

_WAIT_S = 2
_RANDOM = 8
"""Trials whose values are drawn before any is estimated from the others."""
WORKER = "worker"
T = TypeVar("T")
Choose = Callable[[Sequence["FrozenTrial"]], "tuple[FrozenTrial, T] | None"]
Propose = Callable[["optuna.Trial"], Mapping[str, str]]


@dataclass(frozen=True)
class Study:
    """An open study.

    Attributes:
        optuna: Optuna's own.
        storage: where it is kept.
        place: of that, as it is told.
    """

    optuna: optuna.Study
    storage: optuna.storages.BaseStorage
    place: str

    @property
    def facts(self) -> dict[str, Any]:
        """What was written down when it was made; whoever made it may be a stranger (`believed.facts`)."""
        with answering(), readable(self.place):
            return self.optuna.user_attrs

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """All of them, in the order in which they were put into the queue.

        Raises:
            BadInput: one has entries that no worker writes.
        """
        with answering():
            return self._every(deepcopy=True)

    @property
    def unbeaten(self) -> set[int]:
        """Optuna's numbers of the trials that no other one beats."""
        with answering(), readable(self.place):
            return {one.number for one in self.optuna.best_trials}

    def _every(self, deepcopy: bool) -> list[optuna.trial.FrozenTrial]:
        with readable(self.place):
            every = self.optuna.get_trials(deepcopy=deepcopy)
        require_trials(every, self.place)
        return every

    def next(self, choose: Choose[T]) -> tuple[optuna.Trial, T] | None:
        """The next trial of the queue, which nobody else gets, and what is to be done with it; None where nothing is left to do.

        Args:
            choose: the one that waits and is to be done now, by all trials as they are; None where others have to finish first.
        """
        while True:
            with answering():
                self._take_up()
                every = self._every(deepcopy=False)
                chosen = choose(every)
                if chosen is not None and (trial := self._taken(chosen[0])):
                    return trial, chosen[1]
            if chosen is None:
                if not any(one.state.name == "RUNNING" for one in every):
                    return None
                time.sleep(_WAIT_S)  # what a worker leaves behind when it dies is done here

    def _taken(self, waiting: FrozenTrial) -> optuna.Trial | None:
        """Mine from now on; None where somebody else was quicker."""
        import optuna

        running, number = optuna.trial.TrialState.RUNNING, waiting._trial_id
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            if self.storage.set_trial_state_values(number, running):
                if self.storage.get_trial(number).user_attrs != waiting.user_attrs:
                    self.storage.set_trial_state_values(number, optuna.trial.TrialState.WAITING)  # it was looked at meanwhile
                    return None
                self.storage.set_trial_user_attr(number, WORKER, leftovers.mark())
                return optuna.Trial(self.optuna, number)
        return None

    def of(self, trial: optuna.Trial) -> FrozenTrial:
        """What is known of a trial."""
        with answering():
            return self.storage.get_trial(trial._trial_id)

    def put_back(self, trial: optuna.Trial, facts: Mapping[str, Any]) -> None:
        """It waits again, for whoever is next, with what is known of it now."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        with answering(), suppress(UpdateFinishedTrialError):  # somebody took me for dead, and it is another's now
            # The mark last: who takes it next may see it before its own, and take that one for dead.
            for name, value in {**facts, WORKER: ""}.items():
                self.storage.set_trial_user_attr(trial._trial_id, name, value)
            self.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)

    def drawn(
        self, trial: FrozenTrial, propose: Propose, seed: int, known: Callable[[], Sequence[FrozenTrial]]
    ) -> dict[str, str]:
        """The values of a trial, written down: drawn, or estimated from trials whose figures are known.

        Args:
            trial: one without values.
            propose: draws them from a trial of Optuna.
            seed: of what is drawn.
            known: makes trials with parameters and two figures each.

        Raises:
            BadInput: the study holds values that were not drawn from what is searched.
        """
        optuna = the_library()
        with readable(self.place):  # values of trials, and what they were drawn from, as the study has them
            beside = optuna.create_study(directions=["minimize", "minimize"], sampler=_sampler(seed))
            beside.add_trials(known())
            beside.enqueue_trial(trial.system_attrs.get("fixed_params", {}))
            asked = beside.ask()
            found = dict(propose(asked))
        with answering():
            for name, distribution in asked.distributions.items():
                inside = distribution.to_internal_repr(asked.params[name])
                self.storage.set_trial_param(trial._trial_id, name, inside, distribution)
        return found

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
                self._back(trial._trial_id, again(None))
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
            if done.wait(BEAT_S):
                return

    def _take_up(self) -> None:
        """Trials of dead workers go back into the queue."""
        import optuna

        self._every(deepcopy=False)  # what takes trials up reads them, too
        with as_it_is(), readable(self.place):
            optuna.storages.fail_stale_trials(self.optuna)
        running = [one for one in self._every(deepcopy=False) if one.state is optuna.trial.TrialState.RUNNING]
        for trial in running:
            if leftovers.dead(trial.user_attrs.get(WORKER, "")):
                self._back(trial._trial_id, again(RETRIES))

    def _back(self, number: int, then: Any) -> None:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        with suppress(UpdateFinishedTrialError):
            if self.storage.set_trial_state_values(number, TrialState.FAIL):
                left = copy.deepcopy(self.storage.get_trial(number))
                left.set_user_attr(WORKER, "")  # else whoever takes it next is taken for the dead one
                then(self.optuna, left)


def made(place: str, name: str, trials: int, first: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> Study:
    """A new study with all its trials in the queue; `first` are the values of the first ones.

    Raises:
        BadInput: no trials or too many, a storage that cannot be reached, or a study of this name that is there already.
        MissingPackage: Optuna, or what the storage needs, is not installed.
    """
    if not 1 <= trials <= MOST_TRIALS:
        raise BadInput(f"--trials is {trials}; needed are 1 to {MOST_TRIALS}.")
    optuna = the_library()
    storage = opened(place)
    with answering(place):
        try:
            study = optuna.create_study(storage=storage, study_name=name, directions=["minimize", "minimize"])
        except optuna.exceptions.DuplicatedStudyError:
            raise _twice(place, name) from None
        for key, value in facts.items():
            study.set_user_attr(key, value)
        for number in range(trials):
            study.enqueue_trial(dict(first[number]) if number < len(first) else {})
    return Study(study, storage, shown(place))


def require_free(place: str, name: str) -> None:
    """Refuse a storage in which no study of this name can be made, before anything is changed.

    Raises:
        BadInput: it cannot be reached, or has one.
        MissingPackage: Optuna, or what the storage needs, is not installed.
    """
    storage = opened(place)
    with answering(place), readable(shown(place)):
        if name in the_library().get_all_study_names(storage):
            raise _twice(place, name)


def _twice(place: str, name: str) -> BadInput:
    return BadInput(f"There is a study '{name}' in {shown(place)} already. Add --join to work on it, or give another --study.")


def joined(place: str, name: str) -> Study:
    """A study that somebody made.

    Raises:
        BadInput: there is none of this name, it is none of ours, or the storage cannot be reached.
    """
    optuna = the_library()
    storage = opened(place, new=False)
    with answering(place), readable(shown(place)):
        try:
            found = optuna.load_study(storage=storage, study_name=name)
        except KeyError:
            known = ", ".join(one.study_name for one in optuna.get_all_study_summaries(storage)) or "none"
            raise BadInput(
                f"There is no study '{name}' in {shown(place)}, which has: {known}. Leave --join out to make it."
            ) from None
        if [one.name for one in found.directions] != ["MINIMIZE", "MINIMIZE"]:
            raise BadInput(f"The study '{name}' in {shown(place)} is not of 'compress tune'. Give another --study.")
    return Study(found, storage, shown(place))


def _sampler(seed: int) -> Any:
    return the_library().samplers.TPESampler(n_startup_trials=_RANDOM, seed=seed % 2**32)
