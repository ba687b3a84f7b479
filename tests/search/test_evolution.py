from __future__ import annotations

from strop.mutables import OneOf, Space, Subnet
from strop.randomness import counter_rng
from strop.search import RegularizedEvolution, SPOSEvolution, Trial, run

SPACE = Space({f'op{place}': OneOf(tuple(range(4))) for place in range(8)})


def total(subnet: Subnet) -> float:
    return float(sum(subnet.values()))


def differences(first: Subnet, second: Subnet) -> int:
    return len(first.diff(second))


def test_a_generation_of_spos_is_mutations_then_crossovers_then_random() -> None:
    strategy = SPOSEvolution(population=20, top_k=3, mutations=8, crossovers=6, mutate_prob=0.05)
    trials = run(SPACE, total, strategy=strategy, trials=40).trials
    parents = [trial.subnet for trial in sorted(trials[:20], key=lambda trial: (-total(trial.subnet), trial.number))[:3]]
    for trial in trials[20:28]:
        assert 1 <= min(differences(trial.subnet, parent) for parent in parents) <= 4
    for trial in trials[28:34]:
        pairs = [(first, second) for first in parents for second in parents]
        assert any(all(trial.subnet[key] in (first[key], second[key]) for key in SPACE) for first, second in pairs)
    assert any(min(differences(trial.subnet, parent) for parent in parents) > 4 for trial in trials[34:])


def test_a_synchronous_generation_waits_for_the_one_before() -> None:
    strategy = SPOSEvolution(population=4, top_k=2, mutations=2, crossovers=1, synchronous=True).bind(SPACE, 'maximize', seed=0)

    def ask(number: int) -> Subnet | None:
        return strategy.ask(number, counter_rng(0, 'proposal', number))

    first = {number: ask(number) for number in range(4)}
    for number in (3, 0, 2):
        strategy.tell(Trial(number, first[number], 'complete', {'score': total(first[number])}))
        assert ask(4) is None
    strategy.tell(Trial(1, first[1], 'complete', {'score': total(first[1])}))
    alone = run(SPACE, total, strategy=SPOSEvolution(population=4, top_k=2, mutations=2, crossovers=1), trials=5)
    assert ask(4) == alone.trials[4].subnet, 'as if trials had ended in their order'


def test_spos_with_a_space_smaller_than_its_population() -> None:
    space = Space({'a': OneOf((0, 1, 2))})
    result = run(space, lambda subnet: float(subnet['a']), strategy='spos')
    assert (len(result.trials), result.stopped) == (3, 'exhausted')


def test_the_oldest_dies_and_the_child_differs_in_one_decision() -> None:
    strategy = RegularizedEvolution(population=5, sample_size=5).bind(SPACE, 'maximize', seed=1)
    told: list[Trial] = []
    for number in range(30):
        subnet = strategy.ask(number, counter_rng(1, 'proposal', number))
        assert subnet is not None
        if number >= 5:
            living = told[-5:]
            winner = max(living, key=lambda trial: (total(trial.subnet), -trial.number))
            assert differences(subnet, winner.subnet) == 1
        told.append(Trial(number, subnet, 'complete', {'score': total(subnet)}))
        strategy.tell(told[-1])


def test_failed_trials_never_become_parents() -> None:
    def evaluate(subnet: Subnet) -> float:
        if subnet['op0'] == 3:
            raise RuntimeError('broken')
        return total(subnet)

    for strategy in (
        RegularizedEvolution(population=6, sample_size=3),
        SPOSEvolution(population=10, top_k=3, mutations=5, crossovers=5),
    ):
        result = run(SPACE, evaluate, strategy=strategy, trials=80)
        assert {trial.subnet['op0'] for trial in result.failed} == {3}
        assert total(result.best.subnet) >= 17


def test_parents_are_ranked_once_for_all_proposals_that_know_the_same_trials(monkeypatch) -> None:
    strategy = SPOSEvolution(population=4, top_k=1, mutations=4, crossovers=0)
    strategy.bind(SPACE)
    calls = []
    ranked = strategy.ranked
    monkeypatch.setattr(strategy, 'ranked', lambda trials: calls.append(1) or ranked(trials))
    subnets = [strategy.ask(number, counter_rng(0, 'proposal', number)) for number in range(4)]
    for number in range(3):
        strategy.tell(Trial(number, subnets[number], 'complete', {'score': float(number)}))
    for number in (4, 5, 6):
        strategy.ask(number, counter_rng(0, 'proposal', number))
    assert (len(calls), strategy._parents(1)[0].number) == (1, 2)
    # The last one of the generation comes in late, and is the best.
    strategy.tell(Trial(3, subnets[3], 'complete', {'score': 9.0}))
    strategy.ask(7, counter_rng(0, 'proposal', 7))
    assert (len(calls), strategy._parents(1)[0].number) == (2, 3)
