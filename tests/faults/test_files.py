"""Files that cannot be written or are damaged: an error names them, and nothing is lost once the cause is fixed."""

import os
import subprocess

import pytest

from tests.faults import attempts
from tests.permissions import mode, obey_permissions
from tests.training import runs

pytestmark = pytest.mark.long


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("run it as root, with the right to mount a tmpfs (in a container: --cap-add=SYS_ADMIN)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_named_and_costs_nothing(unbroken, small_disk, chance):
    filler = small_disk / "filler"

    def fill(attempt, run):
        with filler.open("wb", buffering=0) as file:
            while attempt.process.is_alive():  # what the run frees is taken too
                try:
                    file.write(bytes(2**16))
                except OSError:
                    attempt.process.join(0.002)
        filler.unlink()
        return attempt.failed_with(f"{run}.*No space left on device")

    attempts.strike(small_disk, chance, unbroken.seconds, fill, unbroken.same)


def test_a_read_only_folder_is_named_and_not_harmed(unbroken, tmp_path, chance):
    def protect(attempt, run):
        folder = run / "checkpoints"
        if not attempt.wait_for(folder.is_dir):
            return False
        with mode(folder, 0o555):
            return attempt.failed_with(f"{folder}.*Permission denied")

    attempts.strike(tmp_path, chance, unbroken.seconds, protect, unbroken.same, changes=(obey_permissions,))


def cut(path, random):
    os.truncate(path, random.randrange(max(1, path.stat().st_size)))


def flip(path, random):
    content = bytearray(path.read_bytes())
    if content:
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["checkpoints", "midway"])
def test_a_damaged_checkpoint_costs_only_steps_since_the_last(unbroken, tmp_path, chance, kind):
    def kill_and_damage(attempt, run):
        attempt.wait_for(lambda: len(runs.saved(run, kind)) >= 2)  # there is none before the first
        attempts.kill(attempt, run)
        if len(runs.saved(run, kind)) < 2 or (run / "summary.json").exists():
            return False
        newest = run / kind / str(runs.saved(run, kind)[-1])
        damage = chance.random.choice((cut, flip))
        damage(chance.random.choice(sorted(path for path in newest.rglob("*") if path.is_file())), chance.random)
        return True

    attempts.strike(tmp_path, chance, unbroken.seconds, kill_and_damage, unbroken.same, "--config.checkpoint_every=2")


def cut_image(path, random):
    path.write_bytes(path.read_bytes()[: random.randrange(1, path.stat().st_size // 2)])


@pytest.mark.parametrize("harm", [lambda path, random: path.unlink(), cut_image], ids=["gone", "cut"])
def test_a_lost_image_is_named_and_can_be_restored(streamed, tmp_path, chance, harm):
    images = sorted(streamed.images.rglob("*.JPEG"))

    def lose_one(attempt, run):
        path = chance.random.choice(images)
        content = path.read_bytes()
        harm(path, chance.random)
        attempt.end()
        path.write_bytes(content)
        # A run that is resumed while the image is cut notices it by the size of the data.
        return attempt.failed_with(f"({path}: (cannot be read|not an image that can)|{run}: the data found differ)")

    attempts.strike(tmp_path, chance, streamed.seconds, lose_one, streamed.same, *streamed.flags)
