"""Trains the network of a config file, or goes on with it where it stopped.

python train.py --config configs/digits.py --workdir runs/digits
python train.py --config configs/cifar10.py:resnet18,plain --workdir runs/plain --config.seed=1 --config.data_dir=DIR
"""

import json
import logging
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from wcjax.errors import DivergedError, InputError
from wcjax.training.command_line import CONFIG_ERRORS, check_overrides, reason

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file: FILE.py or FILE.py:model,variant.")
WORKDIR = flags.DEFINE_string("workdir", None, "Run folder: made if missing, continued if it holds this run.")
flags.mark_flags_as_required(["config", "workdir"])


def parse(argv):
    """absl's parser, but with an error of one line."""
    try:
        check_overrides(argv)
        remaining = flags.FLAGS(argv)
        CONFIG.value.lock()  # where the file was not found, only a use of the config raises
    except CONFIG_ERRORS as error:
        sys.exit(f"error: {reason(error)}")
    return remaining


def main(argv):
    if len(argv) > 1:
        sys.exit(f"error: unknown arguments {argv[1:]}; see --help.")
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("wcjax").setLevel(logging.INFO)
    from wcjax.training import train

    try:
        summary = train(CONFIG.value, WORKDIR.value)
    except InputError as error:
        sys.exit(f"error: {error}")
    except DivergedError as error:
        sys.exit(f"diverged: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on after the last checkpoint.")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
