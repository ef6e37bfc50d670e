"""Fair shares: the client with the least use comes first, and an absent client saves up no time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pellucid.engine.job import FairShares


def test_an_absent_client_saves_nothing_up() -> None:
    shares = FairShares()
    shares.enter("a")
    shares.enter("b")
    for _ in range(100):
        shares.charge({"a": 1}, 1.0)
        shares.charge({"b": 1}, 1.0)
    shares.enter("c")
    assert shares.used("c") == 100.0


def test_a_client_whose_last_job_failed_in_a_step_pays_for_it() -> None:
    shares = FairShares()
    shares.enter("a")
    shares.enter("b")
    shares.leave("b")
    shares.charge({"a": 1, "b": 3}, 8.0)
    shares.enter("b")
    assert (shares.used("a"), shares.used("b")) == (2.0, 6.0)
    shares.leave("a")
    shares.leave("b")
    shares.charge({"b": 1}, 8.0)
    assert shares.used("a") == shares.used("b") == 0.0, "nobody is left who would have to wait"


def test_a_client_that_comes_back_keeps_its_debt() -> None:
    shares = FairShares()
    shares.enter("a")
    shares.enter("b")
    shares.charge({"a": 3, "b": 1}, 8.0)
    shares.leave("a")
    shares.enter("a")
    assert (shares.used("a"), shares.used("b")) == (6.0, 2.0)


events = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.sampled_from("abcd")),
        st.tuples(st.just("leave"), st.sampled_from("abcd")),
        st.tuples(st.just("charge"), st.sampled_from("abcd")),
    ),
    max_size=60,
)


@given(events)
def test_counters_of_absent_clients_do_not_pile_up(events: list[tuple[str, str]]) -> None:
    """Counters exist for present clients, and for absent clients with a higher count. No counter decreases."""
    shares, jobs = FairShares(), dict.fromkeys("abcd", 0)
    for what, client in events:
        before = {one: shares.used(one) for one in jobs if jobs[one]}
        if what == "enter":
            shares.enter(client)
            jobs[client] += 1
        elif what == "leave" and jobs[client]:
            shares.leave(client)
            jobs[client] -= 1
        elif what == "charge" and jobs[client]:
            shares.charge({client: 1}, 1.0)
        present = {one for one in jobs if jobs[one]}
        assert all(shares.used(one) >= before[one] for one in present & before.keys())
        if what == "leave":
            floor = min((shares.used(one) for one in present), default=0.0)
            assert all(shares.used(one) == 0.0 or shares.used(one) > floor for one in jobs.keys() - present)
        assert shares.contended == (len(present) > 1)
