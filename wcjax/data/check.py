"""Finds every image in a folder that a run cannot use.

python -m wcjax.data.check DIR
"""

import argparse
import collections
import mimetypes
import multiprocessing.pool
import os
import signal
import sys

from wcjax.commands import command, program
from wcjax.data.formats import folder
from wcjax.errors import InputError
from wcjax.extras import needs

DESCRIPTION = """Decodes every image in a folder and below, as training does, and prints one line for each that is
broken, unreadable, or of a kind that training does not read (GIF, TIFF, 16 bits per channel, animations). Run it once
before a long training run on ImageNet, TinyImageNet or your own folder. The exit status is 0 if all images can be used,
1 if some cannot, and 2 if there are none. It changes no file."""


def check_folder(root) -> collections.Counter:
    """Prints a line for each bad file below root. Returns the numbers of 'good', 'bad', 'stray' and 'other' files.

    A file is bad if it cannot be read, if `decode.check_image` refuses it, or if its extension is that of an image but
    is not one of EXTENSIONS. Stray files (`folder.is_stray`) and others, like val_annotations.txt, are only counted.
    """
    from tqdm import tqdm  # an optional dependency, as in _reason

    counts, images = collections.Counter(good=0, bad=0, stray=0, other=0), []

    def report_bad(reason):
        counts["bad"] += 1
        tqdm.write(reason.encode(errors="backslashreplace").decode())  # a path may not be UTF-8

    def report_unlisted(error):
        report_bad(f"{error.filename}: cannot be read ({error.strerror}).")

    for path in _walk(root, counts, report_unlisted):
        if path.lower().endswith(folder.EXTENSIONS):
            images.append(path)
        elif (mimetypes.guess_type(path)[0] or "").startswith("image/"):
            report_bad(f"{path}: not read, because it is not one of {', '.join(folder.EXTENSIONS)}. Convert it.")
        else:
            counts["other"] += 1
    with multiprocessing.pool.ThreadPool() as pool:  # threads suffice, because decoding releases Python's lock
        reasons = pool.imap(_reason, images, chunksize=64)
        for reason in tqdm(reasons, "checking", len(images), unit=" images", disable=None):
            if reason is None:
                counts["good"] += 1
            else:
                report_bad(reason)
    return counts


def _walk(root, counts, report_unlisted):
    """Yields the paths of all files below root except stray files, which it counts.

    report_unlisted: called with the OSError of each folder that cannot be listed.
    """
    visited = set()
    for directory, folders, names in os.walk(root, onerror=report_unlisted, followlinks=True):
        counts["stray"] += sum(map(folder.is_stray, folders + names))
        real = os.path.realpath(directory)
        if real in visited:  # following a link to a parent would never end
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not folder.is_stray(name))
        yield from (os.path.join(directory, name) for name in sorted(names) if not folder.is_stray(name))


def _reason(path) -> str | None:
    """Why an image cannot be used, or None if it can be used."""
    from wcjax.data.streaming import decode  # an optional dependency

    try:
        decode.check_image(path, folder.read(path))
    except InputError as error:
        return str(error)
    return None


@command
def main(argv=None) -> int:
    if argv is None:  # this process is the command
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a callback of JAX can swallow KeyboardInterrupt
    parser = argparse.ArgumentParser(program("wcjax.data.check"), description=DESCRIPTION)
    parser.add_argument("dir", metavar="DIR", help="the folder with the images, for example tiny-imagenet-200")
    args = parser.parse_args(argv)
    needs("wcjax.data.check", "stream")
    if not os.path.isdir(args.dir):
        raise InputError(f"{args.dir} is not a folder; give a folder with images.")
    counts = check_folder(args.dir)
    if counts["good"] + counts["bad"] == 0:
        raise InputError(f"{args.dir} contains no images; allowed are {', '.join(folder.EXTENSIONS)}.")
    print(f"good: {counts['good']:,}, bad: {counts['bad']:,}, stray: {counts['stray']:,}, other: {counts['other']:,}")
    return 1 if counts["bad"] else 0


if __name__ == "__main__":
    sys.exit(main())
