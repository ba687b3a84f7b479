from __future__ import annotations

from strop.mutables import OneOf, Ordered, Space, Subnet
from strop.search import LocalSearch, run

SPACE = Space({f'op{place}': OneOf(tuple(range(3))) for place in range(4)})


def test_each_step_is_a_neighbour_of_the_best_of_the_climb_until_none_is_better() -> None:
    def evaluate(subnet: Subnet) -> float:
        values = list(subnet.values())
        return float(sum(values)) if sum(values) != 7 else -1.0  # a trap: the optimum, 8, has no better neighbour

    trials = run(SPACE, evaluate, strategy='local', trials=81).trials
    centre, restarts = trials[0], 0
    for trial in trials[1:]:
        if len(trial.subnet.diff(centre.subnet)) != 1:
            # A restart: every neighbour of the centre has been evaluated, and none is better.
            before = {other.subnet: other.values for other in trials[: trial.number]}
            around = [subnet for subnet in SPACE.grid() if len(subnet.diff(centre.subnet)) == 1]
            assert all(subnet in before for subnet in around)
            centre, restarts = trial, restarts + 1
        elif (trial.values or {})['score'] > (centre.values or {})['score']:
            centre = trial
    assert restarts >= 2
    assert len({trial.subnet for trial in trials}) == 81


def test_each_climb_of_several_objectives_has_its_own_weights() -> None:
    def evaluate(subnet: Subnet) -> dict[str, float]:
        values = list(subnet.values())
        return {'a': float(sum(values)), 'b': float(sum((value - 1) ** 2 for value in values) + values[0])}

    front = run(SPACE, evaluate, strategy='local', trials=60, objectives={'a': 'maximize', 'b': 'minimize'}).front
    exact = run(SPACE, evaluate, strategy='grid', trials=81, objectives={'a': 'maximize', 'b': 'minimize'}).front
    points = [tuple((trial.values or {}).values()) for trial in front]
    assert len(set(points) & {tuple((trial.values or {}).values()) for trial in exact}) >= len(exact) - 1


def test_a_neighbour_that_is_better_in_everything_is_the_next_centre() -> None:
    strategy = LocalSearch(initial=[{'x': 3}, {'x': 2}])
    objectives = {'a': 'minimize', 'b': 'minimize'}
    space = Space({'x': Ordered((0, 1, 2, 3))})
    run(space, lambda subnet: {'a': subnet['x'], 'b': subnet['x']}, strategy=strategy, objectives=objectives, trials=2)
    assert strategy._centre is not None
    assert strategy._centre.subnet['x'] == 2
