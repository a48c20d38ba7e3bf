import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from pipeline.attempts import BegunWork
from pipeline.suspects import Suspects, Turns, WorkerDied


@pytest.fixture
def count():
    return BegunWork()


@pytest.fixture
def process(count):
    """A new process of one run, which makes two further attempts at what others have died of."""
    return lambda: Suspects("generate", count, retries=2)


@pytest.fixture
def die(process):
    """A process begins groups and dies of them: it never gets to end them."""
    dead = []

    def begin_and_die(*groups: str) -> list[int]:
        dead.append(process())
        attempts = [dead[-1].attempt("shard", group) for group in groups]
        dead.extend(attempts)
        return [in_another_thread(attempt.__enter__) for attempt in attempts]

    return begin_and_die


def test_what_was_begun_and_never_ended_has_killed_its_process(count):
    assert [count.begin("a"), count.begin("b")] == [0, 0]
    count.end("b")
    assert [count.begin("a"), count.begin("b")] == [1, 0]


def test_only_a_beginning_alone_counts_against_a_suspect(count):
    assert [count.begin("a"), count.begin("a"), count.begin("a")] == [0, 1, 1]
    assert [count.begin("a", alone=True), count.begin("a", alone=True), count.begin("a")] == [1, 2, 3]


def test_work_that_kills_every_process_is_given_up(process, die):
    assert [die("poison"), die("poison"), die("poison")] == [[0], [1], [2]]
    with pytest.raises(WorkerDied, match="died 3 times") as caught, process().attempt("shard", "poison"):
        pytest.fail("a fourth attempt")
    assert (caught.value.stage, caught.value.code, caught.value.deaths) == ("generate", "worker_died", 3)


def test_what_was_beside_it_is_not(process, die):
    die("innocent", "poison", "innocent too")
    survivor = process()
    for group in ("innocent", "innocent too"):
        with survivor.attempt("shard", group) as deaths:
            assert deaths == 1
    assert [die("poison"), die("poison"), die("innocent")] == [[1], [2], [0]]


def test_what_a_process_has_handed_on_is_forgotten(process, count):
    alive = process()
    for group in "abc":
        with alive.attempt("shard", group):
            pass
    assert list(count._begun) == ["generate shard c"]  # it may still die of that


def test_a_failure_is_no_death(process):
    alive = process()
    for group in ("bad", "next"):
        with pytest.raises(RuntimeError), alive.attempt("shard", group) as deaths:
            raise RuntimeError
    with process().attempt("shard", "bad") as deaths:
        assert deaths == 0


def test_without_a_count_all_work_is_new():
    alone = Suspects("decode", None, retries=0)
    for _ in range(2):
        with alone.attempt("shard", "group") as deaths:
            assert deaths == 0


def test_a_suspect_has_its_process_to_itself(process, die):
    die("suspect")
    alive = process()
    told: list[str] = []

    def work(group: str) -> None:
        with alive.attempt("shard", group):
            told.append(group)

    with ExitStack() as innocent:
        innocent.enter_context(alive.attempt("shard", "innocent"))
        suspect = threading.Thread(target=work, args=("suspect",))
        suspect.start()
        wait_until(lambda: alive._turns._alone == 1)
        late = threading.Thread(target=work, args=("late",))
        late.start()
        assert told == []
    suspect.join(10)
    late.join(10)
    assert told == ["suspect", "late"]


def test_many_turns_together_and_alone_never_overlap():
    turns, here, seen = Turns(), [], []

    def take(alone: bool) -> None:
        for _ in range(50):
            with turns.alone() if alone else turns.together():
                here.append(alone)
                seen.append((alone, len(here), sum(here)))
                here.remove(alone)

    threads = [threading.Thread(target=take, args=(n % 3 == 0,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 300
    assert all(count == 1 for alone, count, _ in seen if alone)
    assert all(not others for alone, _, others in seen if not alone)


def in_another_thread(action):
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(action).result()


def wait_until(condition) -> None:
    waiting = threading.Event()
    while not condition():
        waiting.wait(0.01)
