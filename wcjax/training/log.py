"""What a run shows on the screen while it trains."""

import collections
import sys

import jax
import tqdm

# Steps that may be on their way to the device at once: enough that it never waits, few enough for an honest progress
# bar and for the memory that streamed batches take.
IN_FLIGHT = 8


class ProgressBar:
    """A bar with images/s and the time left on a terminal, and plain lines elsewhere. In the first process alone."""

    def __init__(self, total_images: int, done_images: int):
        self._bar = tqdm.tqdm(
            total=total_images,
            initial=done_images,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0.05,
            disable=jax.process_index() != 0 or not sys.stderr.isatty(),
        )

    def advance(self, images: int) -> None:
        self._bar.update(images)

    def say(self, text: str) -> None:
        """One line above the bar."""
        if jax.process_index() == 0:
            tqdm.tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


class InFlight:
    """The results of the last steps, which the device may not have computed yet; at most IN_FLIGHT of them."""

    def __init__(self, on_done=lambda: None):
        """on_done: called for each step that the device has finished."""
        self._results, self._on_done = collections.deque(), on_done

    def add(self, result: jax.Array) -> None:
        """Waits for the oldest result if there are too many."""
        self._results.append(result)
        if len(self._results) > IN_FLIGHT:
            self._wait()

    def drain(self) -> None:
        """Waits for all results."""
        while self._results:
            self._wait()

    def _wait(self):
        self._results.popleft().block_until_ready()
        self._on_done()
