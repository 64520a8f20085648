"""How much of its time a drafter works, seen by real clocks."""

from __future__ import annotations

import threading
import time

from drafter_svc.load import Load


def burn(seconds: float) -> None:
    """Compute for so much CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_work_on_the_event_loop_is_seen_though_nobody_notes_it() -> None:
    load = Load()
    before = load.busy_seconds
    burn(0.05)
    assert load.busy_seconds - before >= 0.05
    assert load.busy_seconds <= load.uptime_seconds


def test_waiting_for_a_device_on_the_methods_thread_counts_as_work() -> None:
    load = Load()
    begun, done = threading.Event(), threading.Event()

    def draft() -> None:
        with load.working():
            begun.set()
            done.wait(30)

    thread = threading.Thread(target=draft)
    thread.start()
    begun.wait(30)
    first = load.busy_seconds
    while load.busy_seconds < first + 0.02:
        time.sleep(0.001)
    done.set()
    thread.join()
    # It has ended: time goes on, work does not.
    ended, uptime = load.busy_seconds, load.uptime_seconds
    while load.uptime_seconds < uptime + 0.02:
        time.sleep(0.001)
    assert load.busy_seconds - ended < 0.02


def test_blocks_within_one_another_count_once() -> None:
    load = Load()
    with load.working():
        with load.working():
            time.sleep(0.02)
        time.sleep(0.02)
    assert 0.04 <= load.busy_seconds <= load.uptime_seconds
