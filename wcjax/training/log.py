"""What a run shows on the screen while it trains."""

import sys

import jax
import tqdm


class Progress:
    """A bar with images/s and the time left on a terminal; elsewhere plain lines. In the first process alone."""

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
