"""Plain and WC on CIFAR-10 as in the paper, as many seeds as fit into a number of minutes, and the report on them.

    python -m benchmarks.timed_runs --minutes 60 --out runs/paper --config.data_dir=DIR

Trains plain and WC with seed 0, then with seed 1, and so on, each as a process of train.py. When the time is up, the
run that is under way saves its state, and `wcjax.analysis.report` writes OUT/report. The same command resumes. It ends
within its minutes: a process that does not stop in time is killed.
"""

import argparse
import pathlib
import subprocess
import sys
import time

from wcjax.config.command_line import split_overrides

ROOT = pathlib.Path(__file__).parents[1]


def wait(process, seconds: float, grace: float) -> int | None:
    """The exit code of a process. If it does not end within seconds, SIGTERM, after grace seconds SIGKILL, and None."""
    try:
        return process.wait(max(0, seconds))
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return None


def commands(config: str, variants, num_seeds: int, out: pathlib.Path, overrides) -> dict[str, list[str]]:
    """{run folder: the command that trains the run}, each variant with a seed before the next seed."""
    command_of = {}
    for seed in range(num_seeds):
        for variant in variants:
            folder = str(out / variant / str(seed))
            command = [sys.executable, str(ROOT / "train.py"), "--config", f"{config},{variant}", "--workdir", folder]
            command_of[folder] = [*command, f"--config.seed={seed}", *overrides]
    return command_of


def train(commands: dict[str, list[str]], until: float, grace: float) -> list[str]:
    """Trains one run after the other, until time.monotonic() is `until`; returns the folders of runs that failed."""
    failures = []
    for folder, command in commands.items():
        code = wait(subprocess.Popen(command), until - time.monotonic(), grace)
        if code is None:
            break
        if code != 0:
            failures.append(folder)
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="for all of it, with the report")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the run folders and the report")
    parser.add_argument("--config", default=f"{ROOT}/configs/cifar10.py:resnet18", help="default: %(default)s")
    parser.add_argument("--variants", default="plain,wc", help="of the config file (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="at most (default: %(default)s, as in the paper)")
    arguments, overrides = split_overrides(sys.argv[1:])
    args = parser.parse_args(arguments)
    out = args.out.resolve()
    grace = min(60, 6 * args.minutes)  # seconds to save the last run, and as many to write the report
    until = time.monotonic() + 60 * args.minutes - 2 * grace
    failures = train(commands(args.config, args.variants.split(","), args.seeds, out, overrides), until, grace)
    report = [sys.executable, "-m", "wcjax.analysis.report", str(out), "--out", str(out / "report")]
    code = wait(subprocess.Popen(report), grace, 5)
    if failures:
        sys.exit(f"error: these runs failed, see above: {', '.join(failures)}")
    if code != 0:
        sys.exit("error: the report was not written, see above.")


if __name__ == "__main__":
    main()
