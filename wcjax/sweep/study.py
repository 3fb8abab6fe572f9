"""The Optuna study of a sweep, which its workers share on one machine or on several.

The study records which worker trains which run, and the run folders hold the results. A trial is one attempt at one
run. If a worker dies, another takes over its run, in the same folder, once the trial has sent no heartbeat for
`SweepOptions.grace` seconds. A run that diverged, or whose initial weights do not fit under the bound, has failed and
is not tried again.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import uuid

import optuna
from optuna.trial import FrozenTrial, TrialState

from wcjax.config.keys import MAY_DIFFER
from wcjax.sweep.database import OPENING_ERRORS, database_error, open_database
from wcjax.sweep.plan import Plan, SweepOptions
from wcjax.system.files import saving


def study_name(plan: Plan, options: SweepOptions) -> str:
    """The name of the study of exactly these runs.

    In a database outside the folder of the sweep, the name contains the `folder_id` of that folder.
    """
    configs = {
        name: {key: value for key, value in config.to_dict().items() if key not in MAY_DIFFER}
        for name, config in plan.configs.items()
    }
    digest = hashlib.sha256(json.dumps(configs, sort_keys=True).encode()).hexdigest()[:12]
    name = f"{options.out.resolve().name}/{plan.kind}/{digest}"
    return name + (f"/{folder_id(options.out)}" if options.storage else "")


def open_study(name: str, plan: Plan, options: SweepOptions) -> optuna.Study:
    """The study of a name: a new one, or one that another worker or an earlier sweep has made."""
    try:
        return optuna.create_study(
            study_name=name,
            storage=open_database(options),
            sampler=optuna.samplers.GridSampler(plan.space, seed=0),
            direction="maximize",
            load_if_exists=True,
        )
    except OPENING_ERRORS as error:
        raise database_error(options, error) from error


def folder_id(out: pathlib.Path) -> str:
    """The random text in the file .sweep of a folder, which is made if it is missing.

    It stays the same if the folder is moved, or reached by another path.
    """
    path, new = out / ".sweep", out / f".sweep.{uuid.uuid4().hex}"
    with saving(path):
        if not path.exists():
            new.write_text(new.suffix[1:])
            with contextlib.suppress(FileExistsError):  # another worker was faster
                os.link(new, path)
            new.unlink()
        return path.read_text()


@dataclasses.dataclass
class Outcome:
    """What has become of the runs of a plan so far, by the names of their folders.

    Attributes:
      plan: the runs.
      accuracy: {name: accuracy on val} of finished runs.
      failed: {name: reason} of runs that cannot finish.
      lost: {name: reason} of runs that ended in any other way; the next sweep resumes them.
      running: the names of the runs that a worker trains now.
    """

    plan: Plan
    accuracy: dict[str, float] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    lost: dict[str, str] = dataclasses.field(default_factory=dict)
    running: set[str] = dataclasses.field(default_factory=set)

    def best(self) -> dict | None:
        """The point with the highest accuracy on val, the first of equals; None if no run is finished."""
        finished = {values: self.accuracy[name] for values, name in self.plan.names.items() if name in self.accuracy}
        return dict(zip(self.plan.space, max(finished, key=finished.get), strict=True)) if finished else None

    def exit_code(self) -> int:
        """0 if every run has finished or cannot finish."""
        return 1 if self.lost else 0


class Trials:
    """The trials of a study, by the number of their point in the grid.

    Args:
      study: from `open_study`.
      plan: the runs.
      out: the folder of the run folders.

    Attributes:
      lost: {number: reason} of runs that ended in this process without a result; the next sweep resumes them.
    """

    def __init__(self, study: optuna.Study, plan: Plan, out: pathlib.Path):
        self.study, self.plan, self.lost = study, plan, {}
        # A result does not count if its run folder has been deleted since. This is looked up once, because on a network
        # file system another machine sees a new folder late.
        self.deleted = {
            trial.number
            for trial in study.get_trials(deepcopy=False)
            if has_ended(trial) and not (out / plan.name(trial.params) / result_file(trial)).exists()
        }

    def by_point(self) -> dict[int, list[FrozenTrial]]:
        """{number of a point: its trials}, without trials that ended before they had a point."""
        trials = collections.defaultdict(list)
        for trial in self.study.get_trials(deepcopy=False):
            if "grid_id" in trial.system_attrs:
                trials[trial.system_attrs["grid_id"]].append(trial)
        return trials

    def settles(self, trial: FrozenTrial) -> bool:
        """Whether nothing is left to do for the point of a trial."""
        return has_ended(trial) and trial.number not in self.deleted

    def requeue(self) -> tuple[int, int]:
        """Queues the runs that have lost their worker. Returns the numbers of unclaimed and of running runs."""
        optuna.storages.fail_stale_trials(self.study)
        by_point = self.by_point()
        settled_points = {number for number, trials in by_point.items() if any(map(self.settles, trials))}
        running_points = {number for number, trials in by_point.items() if any(map(is_running, trials))}
        running_points -= settled_points
        taken_points = settled_points | running_points | self.lost.keys()
        for number in by_point.keys() - taken_points:
            if not any(trial.state == TrialState.WAITING for trial in by_point[number]):
                last = by_point[number][-1]
                self.study.add_trial(
                    optuna.trial.create_trial(
                        state=TrialState.WAITING,
                        params=last.params,
                        distributions=last.distributions,
                        system_attrs=last.system_attrs,
                    )
                )
        return len(self.plan.names) - len(taken_points), len(running_points)

    def outcome(self) -> Outcome:
        outcome = Outcome(self.plan)
        for number, trials in self.by_point().items():
            trials = [trial for trial in trials if trial.params.keys() == self.plan.space.keys()]
            if not trials:  # the first worker has not yet recorded the point
                continue
            name = self.plan.name(trials[0].params)
            results = [trial for trial in trials if self.settles(trial)]
            if accuracies := [trial.value for trial in results if trial.state == TrialState.COMPLETE]:
                outcome.accuracy[name] = accuracies[0]
            elif results:
                outcome.failed[name] = results[0].user_attrs["reason"]
            elif number in self.lost:
                outcome.lost[name] = self.lost[number]
            elif any(map(is_running, trials)):
                outcome.running.add(name)
        return outcome


def has_ended(trial: FrozenTrial) -> bool:
    """Whether the run of a trial is finished or cannot finish."""
    return trial.state == TrialState.COMPLETE or (trial.state == TrialState.FAIL and "reason" in trial.user_attrs)


def result_file(trial: FrozenTrial) -> str:
    """The file in the run folder that holds the result of a trial that `has_ended`."""
    return "summary.json" if trial.state == TrialState.COMPLETE else "failed.json"


def is_running(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.RUNNING
