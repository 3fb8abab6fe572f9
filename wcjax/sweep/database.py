"""The database that holds the study of a sweep: SQLite in the folder of the sweep, or any that SQLAlchemy can reach."""

import contextlib
import re
import time
import warnings

import optuna
import sqlalchemy

from wcjax.errors import InputError, cause
from wcjax.sweep.plan import SweepOptions

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats

OPENING_ERRORS = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, ValueError)
ERRORS = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)  # of a database that is open


class Database(optuna.storages.RDBStorage):
    def record_heartbeat(self, trial_id: int) -> None:
        with contextlib.suppress(*ERRORS):
            super().record_heartbeat(trial_id)  # another heartbeat follows


def open_database(options: SweepOptions) -> Database:
    url = options.storage
    if url is None:
        url = sqlalchemy.URL.create("sqlite", database=str(options.database.resolve())).render_as_string()
    # SQLite lets one connection write at a time, and the others wait. Every thread needs a connection.
    engine = {"connect_args": {"timeout": options.patience}, "pool_size": 0} if url.startswith("sqlite") else {}

    def connect():
        return Database(url, engine_kwargs=engine, heartbeat_interval=options.heartbeat, grace_period=options.grace)

    for seconds in (2, 1):
        try:
            return connect()
        except (sqlalchemy.exc.DBAPIError, optuna.exceptions.StorageInternalError) as error:
            # If several workers start at the same moment, one of them makes the tables, and the others fail to.
            if re.search("locked|unable to open", driver_message(error)):
                raise
            time.sleep(seconds)
    return connect()


def database_error(options: SweepOptions, error) -> InputError:
    """The InputError for an error that the database, its driver or Optuna raised."""
    # SQLAlchemy would not hide the end of a password that contains an @, nor a password after a ?.
    storage = re.sub(r"(://[^:/]*):.*@", r"\1:***@", str(options.database))
    storage = re.sub(r"(pass\w*=)[^&]*", r"\1***", storage)
    if isinstance(error, ImportError):
        return InputError(
            f"--storage {storage} needs the Python module {driver_message(error)}: pip install 'psycopg[binary]' for "
            "postgresql://, pip install pymysql for mysql+pymysql://."
        )
    if "locked" in driver_message(error):
        return InputError(
            f"another process has locked the sweep's database {storage} for {options.patience / 60:g} minutes. End "
            "that process and run the same command to resume."
        )
    if options.storage is None:
        name = f"the sweep's database {storage}"
        hint = "Remove it and run the same command to resume; finished runs are not repeated."
    else:
        name, hint = f"--storage {storage}", "Give an address such as sqlite:///FILE."
    if re.search("unable to open|readonly", driver_message(error)):
        hint = "Check that its folder exists, and the permissions of both."
    return InputError(f"{name} cannot be used: {driver_message(error)}. {hint}")


def driver_message(error) -> str:
    """The first line of the message of the database or its driver, whose error Optuna wraps in its own."""
    if isinstance(error, optuna.exceptions.StorageInternalError | ImportError) and error.__cause__:
        error = error.__cause__
    return error.name if isinstance(error, ImportError) and error.name else cause(error)
