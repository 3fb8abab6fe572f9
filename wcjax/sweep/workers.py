"""The workers of a sweep: threads that take trials from a shared study and run each in its own process.

The study records who does which run, and the run folders hold the results. A trial is one run. If a worker dies, its
trial is taken up again, in the same folder, once its heartbeat has been missing for GRACE seconds. A run that was
killed alone is taken up again when the sweep is started again. A run that diverged, or whose initial weights do not fit
under the bound, has ended.
"""

import collections
import contextlib
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
from concurrent import futures
from typing import NamedTuple

import optuna
import sqlalchemy
from optuna.trial import TrialState

from wcjax import run_folder
from wcjax.config import check_config
from wcjax.config.build import load_dataset
from wcjax.errors import InputError
from wcjax.files import check_writable, run_path, saving
from wcjax.sweep.plan import Plan
from wcjax.sweep.study import database_error, open_study
from wcjax.sweep.table import LiveTable
from wcjax.training.preemption import START_AGAIN, interruption, signals_noticed

POLL = 1.0  # seconds between two looks at the study and the run folders
SLOW = 5.0  # seconds without an answer of the database after which the table says so


class Outcome(NamedTuple):
    """What became of the runs of a Plan."""

    plan: Plan
    accuracy: dict[str, float]  # of the finished ones, on val
    failed: dict[str, str]  # reasons of those that cannot finish
    lost: dict[str, str]  # of those that ended in another way

    def best(self) -> dict | None:
        """The point with the highest accuracy on val, the first of equals; None if none is finished."""
        done = {values: self.accuracy[name] for values, (name, _) in self.plan.runs.items() if name in self.accuracy}
        return dict(zip(self.plan.space, max(done, key=done.get), strict=True)) if done else None

    def exit_code(self) -> int:
        return 1 if self.lost else 0


class RunFailed(Exception):
    """A run ended without a result; the message says why."""


def work(plan: Plan, out: pathlib.Path, storage: str | None, jobs: int) -> Outcome:
    """Does the runs of plan, `jobs` at a time, until each of them has an end, here or at another worker.

    Raises:
      InputError: a config, a data set, a folder or a storage that cannot be used, before any work; a database that
        cannot be reached any more.
      Preempted, KeyboardInterrupt: SIGTERM or Ctrl-C came, and the runs of this process have been saved.
    """
    configs = {}
    for name, config in plan.runs.values():
        if not re.fullmatch(r"\w[\w.,=+-]*", name):  # a config file need not look at the model that it is called with
            raise InputError(
                f"a run would be called {name!r}: only letters, digits and _ . , = + - make a folder's name."
            )
        configs[name] = check_config(config)
        run_folder.check(run_path(out / name, "workdir"), configs[name])
    if len({config.to_json(sort_keys=True) for config in configs.values()}) != len(plan.runs):
        raise InputError("two runs of the sweep are the same; give each value once.")
    for config in {(c.dataset, c.val_fraction, c.batch_size): c for c in configs.values()}.values():
        load_dataset(config)

    check_writable(out, "--out")
    with saving(out):
        (out / "logs").mkdir(parents=True, exist_ok=True)
    table = LiveTable(list(configs))
    with signals_noticed() as stop, futures.ThreadPoolExecutor(jobs + 1) as pool:
        study = wait_for(pool.submit(open_study, plan, configs, storage, out), table)
        try:
            workers = Workers(plan, study, {name: c.to_dict() for name, c in configs.items()}, out, jobs)
            try:
                stop()  # from here on there are processes to stop
                working = [pool.submit(workers.work) for _ in range(jobs)]
                while not (all(future.done() for future in working) or any(map(has_error, working))):
                    table.show(wait_for(pool.submit(workers.rows), table, stop))
                    time.sleep(POLL)
                for future in working:
                    future.result()
                table.show(wait_for(pool.submit(workers.rows), table, stop), last=True)
                return workers.outcome()
            finally:
                workers.stop()
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise database_error(storage or out / "sweep.db", error) from error


def wait_for(future, table, stop=lambda: ""):
    """The result of a future that asks the database; the table says when that takes long.

    stop: from `signals_noticed`. Raises what it says, and what the future raises.
    """
    while not futures.wait([future], timeout=SLOW).done:
        table.wait()
        if name := stop():
            raise interruption(name, "a sweep")
    if name := stop():
        raise interruption(name, "a sweep")
    return future.result()


class Workers:
    """The workers of this process: `jobs` threads that take trials, each run a process of its own."""

    def __init__(self, plan, study, configs, out, jobs):
        self.plan, self.study, self.configs, self.out, self.jobs = plan, study, configs, out, jobs
        self.n = len(configs)
        self.lost = {}  # {grid id: reason} of runs that were killed here: the next sweep takes them up
        self.processes = {}  # {name: Popen}
        self.lock = threading.Lock()
        self.stopping = False
        # A result whose run folder has been deleted since is none. This is looked up once: on a network file system
        # another machine sees a new folder late.
        self.gone = {t.number for t in study.get_trials(deepcopy=False) if has_end(t) and not self.has_folder(t)}

    def has_folder(self, trial) -> bool:
        """Whether the run folder holds what the trial says."""
        file = "summary.json" if trial.state == TrialState.COMPLETE else "failed.json"
        return (self.out / self.plan.name(trial.params) / file).exists()

    def is_settled(self, trial) -> bool:
        """Whether nothing is left to do for the point of a trial."""
        return has_end(trial) and trial.number not in self.gone

    def work(self) -> None:
        """Takes one trial after the other; waits while others are at the last ones, because they may die."""
        while not self.stopping:
            with self.lock:
                take, running = self.open_runs()
            if take:
                try:
                    self.study.optimize(self.run, n_trials=1, catch=(RunFailed,))
                except ValueError as error:  # this worker slept so long that others took its trial
                    if not str(error).startswith("Cannot tell"):
                        raise
            elif running:
                time.sleep(POLL)
            else:
                return

    def open_runs(self) -> tuple[int, int]:
        """How many runs nobody is at, and how many somebody is at. Trials that lost their worker are queued again."""
        optuna.storages.fail_stale_trials(self.study)
        trials = self.trials()
        settled = {i for i, of in trials.items() if any(map(self.is_settled, of))}
        running = {i for i, of in trials.items() if any(t.state == TrialState.RUNNING for t in of)} - settled
        for i in set(trials) - settled - running - set(self.lost):
            if not any(t.state == TrialState.WAITING for t in trials[i]):
                last = trials[i][-1]
                self.study.add_trial(
                    optuna.trial.create_trial(
                        state=TrialState.WAITING,
                        params=last.params,
                        distributions=last.distributions,
                        system_attrs=last.system_attrs,
                    )
                )
        return self.n - len(settled | running | set(self.lost)), len(running)

    def trials(self) -> dict[int, list]:
        """{number of a point in the grid: its trials}; one that died before it had a point has none."""
        by_point = collections.defaultdict(list)
        for trial in self.study.get_trials(deepcopy=False):
            if "grid_id" in trial.system_attrs:
                by_point[trial.system_attrs["grid_id"]].append(trial)
        return by_point

    def run(self, trial) -> float:
        """One trial: trains in a process of its own, or goes on with the folder; returns the accuracy on val."""
        point = {name: trial.suggest_categorical(name, values) for name, values in self.plan.space.items()}
        name = self.plan.name(point)
        number = self.study.get_trials(deepcopy=False)[trial.number].system_attrs["grid_id"]
        for twin in self.trials()[number]:  # two workers that ask at the same moment may be given the same point
            if twin.state == TrialState.COMPLETE and self.is_settled(twin):
                return twin.value
            if twin.state == TrialState.RUNNING and twin.number < trial.number:
                raise optuna.TrialPruned
        summary, failed = (self.out / name / f"{which}.json" for which in ("summary", "failed"))
        code = START_AGAIN
        while code == START_AGAIN and not (summary.exists() or failed.exists()):
            code = self.train(name, self.out / name)
        if summary.exists():
            return run_folder.read(self.out / name, "summary.json")["best_val_accuracy"]
        if not failed.exists():
            log = self.out / "logs" / f"{name}.log"
            said = log.read_text(errors="replace").splitlines()[-1:] if log.exists() else []
            why = f"killed by signal {-code}" if code < 0 else f"ended with code {code}, see {log}: {' '.join(said)}"
            self.lost[number] = f"{why}; start the sweep again"
            raise RunFailed(why)
        reason = run_folder.read(self.out / name, "failed.json")["reason"]
        trial.set_user_attr("reason", reason)
        raise RunFailed(reason)

    def train(self, name, folder) -> int:
        """Exit code of `python -m wcjax.sweep one folder`; its output is appended to a log."""
        unless_set = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # as in train.py
        if self.jobs > 1:
            unless_set["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / self.jobs:.2f}"
        with (self.out / "logs" / f"{name}.log").open("a") as log:
            with self.lock:
                if self.stopping:
                    raise RunFailed("stopped")
                process = subprocess.Popen(
                    [sys.executable, "-m", "wcjax.sweep", "one", str(folder)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    text=True,
                    env=unless_set | os.environ,
                )
                self.processes[name] = process
            with contextlib.suppress(BrokenPipeError):
                process.communicate(json.dumps(self.configs[name]))
            return process.wait()

    def stop(self) -> None:
        """Ends the processes of this sweep, which save their runs first."""
        with self.lock:
            self.stopping = True
            for process in self.processes.values():
                if process.poll() is None:
                    process.terminate()

    def outcome(self) -> Outcome:
        accuracy, failed, lost = {}, {}, {}
        for i, of in self.trials().items():
            named = [t for t in of if t.params.keys() == self.plan.space.keys()]
            if not named:
                continue
            name = self.plan.name(named[0].params)
            settled = [t for t in of if self.is_settled(t)]
            if done := [t.value for t in settled if t.state == TrialState.COMPLETE]:
                accuracy[name] = done[0]
            elif reasons := [t.user_attrs["reason"] for t in settled]:
                failed[name] = reasons[0]
            elif i in self.lost:
                lost[name] = self.lost[i]
        return Outcome(self.plan, accuracy, failed, lost)

    def rows(self) -> dict[str, tuple[str, str, str, str]]:
        """{name: (state, epoch, accuracy on val, note)} for the table."""
        outcome = self.outcome()
        running = {self.plan.name(t.params) for t in self.all_running()}
        rows = {}
        for name, config in self.configs.items():
            lines = run_folder.read_lines(self.out / name)
            epoch = f"{len(lines)}/{config['epochs']}"
            if name in outcome.accuracy:
                rows[name] = ("finished", epoch, f"{outcome.accuracy[name]:.2%}", "")
            elif name in outcome.failed:
                rows[name] = ("failed", epoch, "", outcome.failed[name])
            elif name in outcome.lost:
                rows[name] = ("lost", epoch, "", outcome.lost[name])
            elif name in running:
                rows[name] = ("running", epoch, f"{lines[-1]['val_accuracy']:.2%}" if lines else "", "")
            else:
                rows[name] = ("to do", epoch if lines else "", "", "")
        return rows

    def all_running(self):
        trials = itertools.chain.from_iterable(self.trials().values())
        return [t for t in trials if t.state == TrialState.RUNNING and t.params.keys() == self.plan.space.keys()]


def has_error(future) -> bool:
    return future.done() and future.exception() is not None


def has_end(trial) -> bool:
    """Whether a trial is a finished run, or one that cannot finish."""
    return trial.state == TrialState.COMPLETE or (trial.state == TrialState.FAIL and "reason" in trial.user_attrs)
