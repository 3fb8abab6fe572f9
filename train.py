"""Trains the network that a config file describes, or resumes its run.

python train.py --config configs/digits.py --workdir runs/digits
python train.py --config configs/cifar10.py:resnet18,plain --workdir runs/plain --config.seed=1 --config.data_dir=DIR

`wcjax-train` is the same command, installed. It is explained in wcjax/training/__main__.py.
"""

import pathlib
import runpy

if __name__ == "__main__":
    # Not an import: `import wcjax.training` takes a second, in which SIGTERM would end the process with exit code 143
    # (its default action) instead of 75.
    runpy.run_path(pathlib.Path(__file__).with_name("wcjax") / "training" / "start.py")["prepare"]()
    from wcjax.training.__main__ import main

    main()
