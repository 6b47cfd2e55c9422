"""A job's life step by step, what it costs at each, and who is served next."""

from datetime import UTC, datetime, timedelta

import pytest

from cs336.service import life_cycle
from cs336.service.fair_order import Waiting, fair_order
from cs336.service.life_cycle import StaleRun, Status, WrongState

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def running(*, run_id: str = "a") -> Status:
    return life_cycle.dispatched(life_cycle.queued(NOON), run_id, after(5))


def ended(status: Status, *, used: float = 3.0, failure=None, error=None) -> Status:
    return life_cycle.finished(status, "a", used_seconds=used, failure=failure, error=error, now=after(99))


def test_from_the_queue_to_the_end():
    status = running()
    assert (status.state, status.run_id, status.dispatched_at) == ("running", "a", after(5))
    status = life_cycle.started(status, "a", after(20))
    status = life_cycle.validated(status, "a", 0, 4.5, after(30))
    status = life_cycle.validated(status, "a", 1, 4.0, after(40))
    assert (status.started_at, status.heard_at, status.val_losses) == (after(20), after(40), (4.5, 4.0))
    done = ended(status, used=20.5)
    assert (done.state, done.finished_at, done.used_seconds) == ("completed", after(99), 20.5)
    assert done.queued_at == NOON and done.val_losses == (4.5, 4.0)


@pytest.mark.parametrize("failure", ["timeout", "unexpected"])
def test_a_failure_keeps_its_kind_its_text_and_the_losses_so_far(failure):
    status = ended(life_cycle.validated(running(), "a", 0, 4.5, NOON), failure=failure, error="why")
    assert (status.state, status.failure, status.error, status.val_losses) == ("failed", failure, "why", (4.5,))


def test_each_step_needs_its_state():
    waiting, done = life_cycle.queued(NOON), ended(running())
    for status in (waiting, done):
        for step in (
            lambda status: life_cycle.started(status, "a", NOON),
            lambda status: life_cycle.heard(status, "a", NOON),
            lambda status: life_cycle.validated(status, "a", 0, 1.0, NOON),
            lambda status: life_cycle.preempted(status, "a", NOON),
            ended,
        ):
            with pytest.raises(WrongState):
                step(status)
    for status in (running(), done):
        with pytest.raises(WrongState):
            life_cycle.dispatched(status, "b", NOON)


def test_another_runs_news_are_stale():
    for step in (
        lambda: life_cycle.validated(running(), "b", 0, 1.0, NOON),
        lambda: life_cycle.finished(running(), "b", used_seconds=1, failure=None, error=None, now=NOON),
    ):
        with pytest.raises(StaleRun):
            step()


def test_a_loss_told_twice_counts_once_and_none_may_be_missing():
    status = life_cycle.validated(running(), "a", 0, 4.5, NOON)
    assert life_cycle.validated(status, "a", 0, 4.5, NOON).val_losses == (4.5,)
    with pytest.raises(ValueError, match="cannot come next"):
        life_cycle.validated(status, "a", 2, 4.0, NOON)


def test_a_preempted_job_waits_at_its_old_place_and_begins_anew():
    status = life_cycle.validated(running(), "a", 0, 4.5, NOON)
    assert life_cycle.preempted(status, "a", after(60)) == life_cycle.queued(NOON)


def test_what_a_job_costs():
    assert life_cycle.charge_seconds(life_cycle.queued(NOON), 600) == 600
    assert life_cycle.charge_seconds(running(), 600) == 600
    for failure in (None, "timeout", "unexpected"):
        for used, charged in ((0.0, 1), (0.2, 1), (10.2, 10.2), (600, 600), (631, 600)):
            status = ended(running(), used=used, failure=failure)
            assert life_cycle.charge_seconds(status, 600) == charged


def test_the_watchdog_waits_for_five_percent_and_ten_seconds_from_the_first_chunk():
    status = life_cycle.started(running(), "a", after(100))  # data and compilation took 95 s, and are free
    assert not life_cycle.is_overdue(status, 200, after(100 + 220))
    assert life_cycle.is_overdue(status, 200, after(100 + 220.1))
    assert not life_cycle.is_overdue(running(), 200, after(10_000))  # no chunk has begun
    assert not life_cycle.is_overdue(ended(status), 200, after(10_000))


def test_a_run_is_stuck_whose_first_chunk_does_not_begin_though_its_worker_is_heard():
    status = life_cycle.heard(running(), "a", after(1_800))
    assert not life_cycle.is_stuck(status, after(5 + 1_800)) and life_cycle.is_stuck(status, after(5 + 1_800.1))
    begun = life_cycle.started(status, "a", after(1_801))
    for other in (begun, ended(status), life_cycle.queued(NOON), life_cycle.preempted(status, "a", after(1_801))):
        assert not life_cycle.is_stuck(other, after(100_000))


def test_silence_counts_from_the_last_sign_of_life():
    status = life_cycle.heard(running(), "a", after(100))
    assert not life_cycle.is_silent(status, 180, after(280)) and life_cycle.is_silent(status, 180, after(280.1))
    assert not life_cycle.is_silent(life_cycle.queued(NOON), 180, after(10_000))
    assert life_cycle.trained_seconds(status) == 0
    assert (
        life_cycle.trained_seconds(life_cycle.heard(life_cycle.started(status, "a", after(110)), "a", after(150))) == 40
    )


# ---- the fair order


def jobs(*triples: tuple[float, int, int]) -> list[Waiting]:
    return [Waiting(after(seconds), number, user) for seconds, number, user in triples]


def numbers(order: list[Waiting]) -> list[int]:
    return [job.number for job in order]


def test_a_long_queue_does_not_hold_up_anothers_first_job():
    waiting = jobs((0, 1, 10), (1, 2, 10), (2, 3, 10), (50, 4, 20), (60, 5, 20))
    assert numbers(fair_order(waiting, {})) == [1, 4, 2, 5, 3]


def test_running_jobs_count():
    waiting = jobs((0, 1, 10), (1, 2, 10), (50, 4, 20), (60, 5, 20))
    assert numbers(fair_order(waiting, {10: 1})) == [4, 1, 5, 2]
    assert numbers(fair_order(waiting, {10: 2, 20: 1})) == [4, 1, 5, 2]
    assert numbers(fair_order(waiting, {10: 1, 30: 7})) == [4, 1, 5, 2]


def test_then_the_time_and_then_the_number():
    assert numbers(fair_order(jobs((5, 1, 10), (4, 2, 20), (4, 9, 30), (4, 3, 40)), {})) == [2, 3, 9, 1]
    # A preempted job has its old time, and stands before the user's others though its number be larger.
    assert numbers(fair_order(jobs((5, 1, 10), (4, 2, 10)), {})) == [2, 1]
