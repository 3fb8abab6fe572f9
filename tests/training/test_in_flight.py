"""Steps on their way to the device."""

from wcjax.training.in_flight import MAX_IN_FLIGHT, InFlight


def test_a_result_is_passed_on_when_the_device_has_finished():
    class Result:
        is_ready = False

        def block_until_ready(self):
            self.is_ready = True

    done, results = [], [Result() for _ in range(MAX_IN_FLIGHT + 2)]
    in_flight = InFlight(on_done=lambda result: done.append((result, result.is_ready)))
    for result in results:
        in_flight.add(result)
    assert done == [(result, True) for result in results[:2]]
    assert not any(result.is_ready for result in results[2:]), "no step waits for the newest results"
    in_flight.drain()
    assert done == [(result, True) for result in results]
