"""What engines hold against engines that really evict what was used longest ago."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.trajectory.holdings import EngineMemory, Holdings

PAGES = st.integers(0, 40)


class RealMemory:
    """A stub of an engine's cache: single tokens of sessions that share nothing, least recently
    used first, within a prefix the last one first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tokens: OrderedDict[tuple[str, int], None] = OrderedDict()

    def use(self, session: str, tokens: int) -> None:
        for key in [key for key in self.tokens if key[0] == session]:
            del self.tokens[key]
        for index in reversed(range(tokens)):
            self.tokens[session, index] = None
        while len(self.tokens) > self.capacity:
            self.tokens.popitem(last=False)

    def held(self, session: str) -> int:
        return sum(key[0] == session for key in self.tokens)


@given(
    st.integers(0, 60),
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 30)), max_size=30),
)
def test_the_model_evicts_as_an_engine_does(capacity: int, uses: list[tuple[str, int]]) -> None:
    model, real = EngineMemory[str](capacity), RealMemory(capacity)
    for session, tokens in uses:
        gone = model.touch(session, tokens)
        real.use(session, tokens)
        for name in "abcde":
            assert model.held(name) == real.held(name)
        assert all(model.held(name) == 0 for name in gone)
        assert model.used == len(real.tokens) <= capacity


actions = st.one_of(
    st.tuples(st.just("used"), st.sampled_from("pq"), st.sampled_from("abc"), PAGES, PAGES),
    st.tuples(st.just("clear"), st.sampled_from("pq")),
    st.tuples(st.just("resize"), st.sampled_from("pq"), PAGES),
    st.tuples(st.just("forget"), st.sampled_from("abc")),
)


@given(st.lists(actions, max_size=25))
def test_the_books_agree(story: list[tuple[object, ...]]) -> None:
    """What a session holds is what its engines hold of it, and nothing is left of what is gone."""
    holdings = Holdings[str, str]("pq")
    holdings.resize("p", 50)
    for name, *given_args in story:
        if name == "used":
            engine, session, kept, new = given_args
            holdings.used(session, kept, {engine: kept + new})  # type: ignore
        else:
            getattr(holdings, str(name))(*given_args)
        for session in "abc":
            held = holdings.of(session, 1000)
            assert set(held) == {e for e in "pq" if session in holdings._memories[e]._tokens}
            for engine, tokens in held.items():
                assert tokens == holdings._memories[engine].held(session)
        for engine in "pq":
            memory = holdings._memories[engine]
            assert memory.used == sum(memory._tokens.values()) <= memory._capacity


def test_a_cut_history_is_held_up_to_the_cut() -> None:
    holdings = Holdings[str, str]("pd")
    for engine in "pd":
        holdings.resize(engine, 1000)
    holdings.used("s", 0, {"p": 300, "d": 310})
    assert holdings.of("s", 310) == {"p": 300, "d": 310}
    assert holdings.of("s", 120) == {"p": 120, "d": 120}
    holdings.used("s", 120, {"p": 200})
    assert holdings.of("s", 200) == {"p": 200, "d": 120}, "d has the old tokens behind the cut"
    holdings.clear("p")
    assert holdings.of("s", 200) == {"d": 120}
    holdings.forget("s")
    assert holdings.of("s", 200) == {}


def test_an_engine_of_unknown_size_holds_nothing() -> None:
    holdings = Holdings[str, str]("p")
    holdings.used("s", 0, {"p": 300})
    assert holdings.of("s", 300) == {}
