"""The console scripts. Each imports its module when it runs, so that a missing extra is an error of one line."""

import importlib

from wcjax.errors import command


def _main_of(module: str):
    @command
    def run(argv=None):
        return importlib.import_module(module).main(argv)

    return run


train = _main_of("wcjax.training.__main__")
evaluate = _main_of("wcjax.training.evaluate")
sweep = _main_of("wcjax.sweep.__main__")
report = _main_of("wcjax.analysis.report")
robustness = _main_of("wcjax.analysis.robustness")
compare = _main_of("wcjax.analysis.compare")
data_check = _main_of("wcjax.data.check")
