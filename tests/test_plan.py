"""The simulation keeps to its own rules, whatever is asked of it."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from plan import Outcome, Plan, Simulation

plans = st.builds(
    Plan,
    items=st.integers(1, 5_000),
    seconds=st.floats(0.01, 5),
    at_once=st.integers(1, 64),
    shard=st.integers(1, 500),
    in_flight=st.integers(1, 64),
    workers=st.integers(1, 32),
    cold_start=st.floats(0.1, 60),
    queue_delay=st.floats(0.5, 30),
    idle_timeout=st.floats(1, 60),
    between_jobs=st.floats(0, 5),
)


@settings(deadline=None)
@given(plan=plans)
def test_no_plan_is_faster_than_its_workers_or_costs_less_than_its_work(plan: Plan) -> None:
    outcome = Simulation(plan).run()
    full, rest = divmod(plan.items, plan.shard)
    work = sum(
        plan.between_jobs + math.ceil(items / plan.at_once) * plan.seconds
        for items in [plan.shard] * full + [rest]
        if items
    )
    assert 1 <= outcome.workers <= plan.workers
    assert outcome.seconds >= (plan.cold_start + work / min(plan.workers, plan.in_flight)) * (1 - 1e-9)
    assert outcome.seconds <= (work + full + 1) * 2 + (plan.cold_start + plan.idle_timeout + plan.queue_delay) * (
        full + 1
    )
    assert outcome.paid >= (work + plan.cold_start + plan.idle_timeout) * (1 - 1e-9)


def test_one_worker_does_one_job_after_the_other() -> None:
    plan = Plan(items=10, seconds=2, at_once=5, shard=5, in_flight=2, workers=1, between_jobs=1)
    assert Simulation(plan).run() == Outcome(seconds=10 + 2 * (1 + 2), paid=10 + 2 * (1 + 2) + 10, workers=1)


def test_a_job_that_waits_for_the_queue_delay_starts_one_more_worker() -> None:
    plan = Plan(items=20, seconds=30, at_once=10, shard=10, in_flight=2, workers=3, cold_start=3, between_jobs=0)
    assert Simulation(plan).run() == Outcome(seconds=4 + 3 + 30, paid=2 * (3 + 30 + 10), workers=2)


def test_a_plan_that_asks_for_a_worker_at_every_moment_is_made_as_soon() -> None:
    """A delay of almost nothing, jobs that take days, and workers that take as long to start."""
    plan = Plan(items=100, seconds=9e5, at_once=1, shard=1, in_flight=64, workers=32, cold_start=9e5, queue_delay=1e-9)
    assert Simulation(plan).run().workers == 32
