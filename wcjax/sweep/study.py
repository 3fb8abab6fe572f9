"""The Optuna study that the workers of a sweep share, on one machine or on several, and the database that holds it."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import time
import uuid
import warnings

import optuna
import sqlalchemy

from wcjax.config.keys import MAY_DIFFER
from wcjax.errors import InputError, cause
from wcjax.files import saving
from wcjax.sweep.plan import Plan

HEARTBEAT, GRACE = 5, 30  # seconds
PATIENCE = 600.0  # seconds for which SQLite waits for a lock

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats


def open_study(plan: Plan, configs, storage: str | None, out) -> optuna.Study:
    """The study of exactly these runs in the storage: made if it is not there, else joined.

    storage: None for a database in the folder out. Elsewhere the study also has the `identity` of that folder.
    """
    same = {name: {k: v for k, v in c.to_dict().items() if k not in MAY_DIFFER} for name, c in configs.items()}
    digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:12]
    name = f"{out.resolve().name}/{plan.kind}/{digest}" + (f"/{identity(out)}" if storage else "")
    try:
        url = storage or sqlalchemy.URL.create("sqlite", database=str((out / "sweep.db").resolve())).render_as_string()
        return optuna.create_study(
            study_name=name,
            storage=open_database(url),
            sampler=optuna.samplers.GridSampler(plan.space, seed=0),
            direction="maximize",
            load_if_exists=True,
        )
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, ValueError) as error:
        raise database_error(storage or out / "sweep.db", error) from error


class Database(optuna.storages.RDBStorage):
    def record_heartbeat(self, trial_id: int) -> None:
        with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError):
            super().record_heartbeat(trial_id)  # another one follows


def open_database(url: str) -> Database:
    # SQLite has one writer at a time, for whom the others wait; every thread needs a connection.
    engine = {"connect_args": {"timeout": PATIENCE}, "pool_size": 0} if url.startswith("sqlite") else {}
    connect = lambda: Database(url, engine_kwargs=engine, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
    for seconds in (2, 1):
        try:
            return connect()
        except (sqlalchemy.exc.DBAPIError, optuna.exceptions.StorageInternalError) as error:
            # If workers start at the same moment, one makes the tables, and the others fail at making them too.
            if re.search("locked|unable to open", reason(error)):
                raise
            time.sleep(seconds)
    return connect()


def database_error(storage, error) -> InputError:
    """What to say of an error from the database at the address or file `storage`."""
    storage = re.sub(r":[^:/@]*@", ":***@", str(storage))
    if isinstance(error, ImportError):
        return InputError(
            f"--storage {storage} needs the Python module {reason(error)}: pip install 'psycopg[binary]' for "
            "postgresql://, pip install pymysql for mysql+pymysql://."
        )
    if "locked" in reason(error):
        return InputError(
            f"the sweep's database {storage} has been locked by another process for {PATIENCE / 60:g} minutes. End "
            "that process; the same command resumes the sweep."
        )
    fix = "Give an address like sqlite:///FILE."
    if re.search("unable to open|readonly", reason(error)):
        fix = "Check that its folder exists and the permissions of both."
    return InputError(f"--storage {storage} cannot be used: {reason(error)}. {fix}")


def reason(error) -> str:
    """What the database or its driver said, in one line; Optuna puts another error around it."""
    if isinstance(error, optuna.exceptions.StorageInternalError | ImportError) and error.__cause__:
        error = error.__cause__
    return error.name if isinstance(error, ImportError) and error.name else cause(error)


def identity(out: pathlib.Path) -> str:
    """The random text in the file .sweep of a folder, made if it is not there: the same under every path to it."""
    path, new = out / ".sweep", out / f".sweep.{uuid.uuid4().hex}"
    with saving(path):
        if not path.exists():
            new.write_text(new.suffix[1:])
            with contextlib.suppress(FileExistsError):  # another worker was faster
                os.link(new, path)
            new.unlink()
        return path.read_text()
