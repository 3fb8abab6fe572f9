"""Steps that were dispatched but have not finished."""

import collections

import jax

# How many steps may be dispatched before the first of them has finished: enough that the device never waits, few enough
# that the numbers shown are recent and that the batches of a streamed split fit into memory.
MAX_IN_FLIGHT = 8


class InFlight:
    """The results of the last steps, which the device may not have computed yet; at most MAX_IN_FLIGHT of them."""

    def __init__(self, on_done=lambda result: None):
        """on_done: called with the result of each step that the device has finished."""
        self._results, self._on_done = collections.deque(), on_done

    def add(self, result: jax.Array) -> None:
        """Waits for the oldest result if there are too many."""
        self._results.append(result)
        if len(self._results) > MAX_IN_FLIGHT:
            self._wait()

    def drain(self) -> None:
        """Waits for all results."""
        while self._results:
            self._wait()

    def _wait(self):
        result = self._results.popleft()
        result.block_until_ready()
        self._on_done(result)
