"""Reading in a thread, one item ahead."""

import gc
import threading
import weakref

import numpy as np
import pytest

from processing.reading_ahead import read_ahead


class OwnError(Exception):
    """Not one that any code here knows."""


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "read_ahead"]


def test_the_items_come_in_order_and_from_one_other_thread():
    seen = set()

    def items():
        for index in range(5):
            seen.add(threading.current_thread())
            yield index

    assert list(read_ahead(items())) == [0, 1, 2, 3, 4]
    assert len(seen) == 1 and threading.current_thread() not in seen
    assert not threads()


def test_no_items():
    assert list(read_ahead(item for item in ())) == [] and not threads()


def test_the_next_item_alone_is_read_meanwhile():
    read, changed = [], threading.Condition()

    def items():
        for index in range(4):
            with changed:
                read.append(index)
                changed.notify_all()
            yield index

    for index, _ in enumerate(read_ahead(items())):
        with changed:
            next_one = min(index + 1, 3)
            assert changed.wait_for(lambda last=next_one: last in read, timeout=60)
            assert not changed.wait_for(lambda last=next_one: last + 1 in read, timeout=0.05)
    assert index == 3 and not threads()


@pytest.mark.parametrize("error", [OwnError("the third"), KeyboardInterrupt()])
def test_an_error_is_raised_as_itself_after_the_items_before_it(error):
    def items():
        yield 1
        yield 2
        raise error

    found = []
    with pytest.raises(type(error)) as raised:
        for item in read_ahead(items()):
            found.append(item)
    assert raised.value is error and found == [1, 2]
    assert "items" in [entry.name for entry in raised.traceback]  # where it came from
    assert not threads()


def test_closed_early_the_thread_ends_and_the_generator_cleans_up():
    closed_in, num_read = [], 0

    def items():
        nonlocal num_read
        try:
            for index in range(100):
                num_read += 1
                yield index
        finally:
            closed_in.append(threading.current_thread().name)

    for item in read_ahead(items()):
        if item == 3:
            break
    del item
    gc.collect()
    assert closed_in == ["read_ahead"] and num_read <= 5
    assert not threads()


def test_an_error_of_the_consumer_ends_the_thread():
    ahead = read_ahead(index for index in range(100))
    with pytest.raises(OwnError):
        try:
            for _ in ahead:
                raise OwnError
        finally:
            ahead.close()
    assert not threads()


def test_nothing_is_read_before_it_is_asked_for():
    started = []
    ahead = read_ahead(started.append(index) for index in range(3))
    assert not started and not threads()
    ahead.close()
    assert not started


def test_an_error_keeps_no_item_alive():
    """The traceback has the frames that read and handed on; without the collector of circles all goes with it."""
    item = np.zeros(3)
    gone = weakref.ref(item)

    def items(first):
        yield first
        del first
        raise OwnError

    ahead = read_ahead(items(item))
    del item
    gc.disable()
    try:
        next(ahead)
        with pytest.raises(OwnError):
            next(ahead)
        assert gone() is None
    finally:
        gc.enable()
