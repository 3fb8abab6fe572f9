"""The workers of a sweep: threads that take trials from the study and train each in its own process."""

import contextlib
import pathlib
import threading
from collections.abc import Callable
from concurrent import futures

import optuna
from optuna.trial import TrialState

from wcjax import run_folder
from wcjax.config.build import load_dataset
from wcjax.sweep import database
from wcjax.sweep.plan import Plan, SweepOptions
from wcjax.sweep.study import Outcome, Trials, is_running, open_study, study_name
from wcjax.sweep.table import LiveTable, table_rows
from wcjax.system.files import saving
from wcjax.system.paths import check_writable, run_path
from wcjax.training.preemption import StopSignals, interruption, stop_signals
from wcjax.training.start import EXIT_PREEMPTED


def train_runs(plan: Plan, options: SweepOptions, start: Callable) -> Outcome:
    """Trains the runs of plan, up to `options.jobs` at a time, until each has ended, in this process or in another one.

    start: starts the process of a run, see `process.start_run`.

    Raises:
      InputError: a data set, a folder or a database cannot be used, before any work; or the database cannot be reached
        any more.
      Preempted, KeyboardInterrupt: SIGTERM or Ctrl-C came, and the runs of this process have been saved.
    """
    check_inputs(plan, options)
    options = options._replace(jobs=min(options.jobs, len(plan.configs)))  # each gets a share of the accelerator
    with saving(options.out):
        (options.out / "logs").mkdir(parents=True, exist_ok=True)
    table = LiveTable(plan.configs)
    with stop_signals() as signals, futures.ThreadPoolExecutor(options.jobs + 1) as pool:

        def ask(function, *args):
            """The result of a call that uses the database. It may be locked, so a thread waits for it."""
            return wait_for(pool.submit(function, *args), table, options.slow, signals)

        study = ask(open_study, study_name(plan, options), plan, options)
        try:
            trials = ask(Trials, study, plan, options.out)
            workers = Workers(trials, options, start)
            signals.arm()  # from here on there are processes to stop
            with contextlib.closing(workers):
                pending = [pool.submit(workers.work) for _ in range(options.jobs)]
                while pending:
                    table.show(table_rows(ask(trials.outcome), options.out))
                    ended, pending = futures.wait(pending, options.poll, futures.FIRST_EXCEPTION)
                    for future in ended:
                        future.result()
                outcome = ask(trials.outcome)
                table.show(table_rows(outcome, options.out), last=True)
                return outcome
        except database.ERRORS as error:
            raise database.database_error(options, error) from error


def check_inputs(plan: Plan, options: SweepOptions) -> None:
    """Raises InputError for a folder or a data set that cannot be used."""
    for name, config in plan.configs.items():
        run_folder.check_matches(run_path(options.out / name, "workdir"), config)
    # One config for each combination of the keys that `load_dataset` checks.
    distinct = {(c.dataset, c.val_fraction, c.train_images, c.batch_size, c.epochs): c for c in plan.configs.values()}
    for config in distinct.values():
        load_dataset(config)
    check_writable(options.out, "--out")


def wait_for(future: futures.Future, table: LiveTable, slow: float, signals: StopSignals):
    """The result of a future. If it takes longer than `slow` seconds, the table says so.

    After a signal it raises `interruption`.
    """
    while True:
        ended, _ = futures.wait([future], timeout=slow)
        if name := signals.pending():
            raise interruption(name, "a sweep")
        if ended:
            return future.result()
        table.wait()


class RunFailed(Exception):
    """A run ended without a result. The message is the reason."""


class Workers:
    """The workers of this process: `options.jobs` threads that call `work`. Each run has its own process."""

    def __init__(self, trials: Trials, options: SweepOptions, start: Callable):
        self.trials, self.options, self.start = trials, options, start
        self.processes = {}  # {name: Popen}
        self.lock = threading.Lock()
        self.stopping = threading.Event()

    def work(self) -> None:
        """Takes one trial after another. Waits while other workers train the last runs, because they may die."""
        while not self.stopping.is_set():
            with self.lock:
                unclaimed, running = self.trials.requeue()
            if unclaimed:
                try:
                    self.trials.study.optimize(self.objective, n_trials=1, catch=(RunFailed,))
                except ValueError as error:  # this worker was suspended for so long that another took its trial
                    if not str(error).startswith("Cannot tell"):
                        raise
            elif running:
                self.stopping.wait(self.options.poll)
            else:
                return

    def objective(self, trial: optuna.Trial) -> float:
        """Trains or resumes the run of a trial, in its own process. Returns its accuracy on val."""
        plan, trials = self.trials.plan, self.trials
        name = plan.name({key: trial.suggest_categorical(key, values) for key, values in plan.space.items()})
        number = trials.study.get_trials(deepcopy=False)[trial.number].system_attrs["grid_id"]
        for twin in trials.by_point()[number]:  # two workers that ask at the same moment may get the same point
            if twin.state == TrialState.COMPLETE and trials.settles(twin):
                return twin.value
            if is_running(twin) and twin.number < trial.number:
                raise optuna.TrialPruned
        code = self.run_process(name)
        while code == EXIT_PREEMPTED:
            self.stopping.wait(self.options.pause)
            code = self.run_process(name)
        folder = self.options.out / name
        if summary := run_folder.read(folder, "summary.json"):
            return summary["best_val_accuracy"]
        if failure := run_folder.read(folder, "failed.json"):
            trial.set_user_attr("reason", failure["reason"])
            raise RunFailed(failure["reason"])
        reason = self.lost_reason(name, code)
        trials.lost[number] = f"{reason}; run the same command to resume"
        raise RunFailed(reason)

    def run_process(self, name: str) -> int | None:
        """Trains a run in a new process and returns its exit code, or returns None if the run has ended already."""
        folder, config = self.options.out / name, self.trials.plan.configs[name].to_dict()
        if any((folder / file).exists() for file in ("summary.json", "failed.json")):
            return None
        with self.lock:
            if self.stopping.is_set():
                raise RunFailed("stopped")
            process = self.start(folder, config, self.log_path(name), self.options.jobs)
            self.processes[name] = process
        return process.wait()

    def lost_reason(self, name: str, code: int) -> str:
        """Why a process has left no result: the signal, or the exit code and the last line of the log."""
        if code < 0:
            return f"killed by signal {-code}"
        log = self.log_path(name)
        last = log.read_text(errors="replace").splitlines()[-1:] if log.exists() else []
        return f"exit code {code}, see {log}: {' '.join(last)}"

    def log_path(self, name: str) -> pathlib.Path:
        """The file that the output of a run is appended to."""
        return self.options.out / "logs" / f"{name}.log"

    def close(self) -> None:
        """Ends the processes of this sweep, which save their runs first."""
        with self.lock:
            self.stopping.set()
            for process in self.processes.values():
                if process.poll() is None:
                    process.terminate()
