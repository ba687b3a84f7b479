"""Search with a tuner and trials written for NNI: the space from the script, a tuner of one's own, one store.

    python examples/nni_trials/search.py --trials 8

A search that is killed goes on where it was. At the end the best network is trained longer and scored on the test part.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

import torch
from trial import Net, accuracy, tensors, train

from strop.mutables import SearchSpaceFile
from strop.mutators import apply_fixed_architecture
from strop.search import TrialCommand, Tuner, TunerStrategy, run

HERE = Path(__file__).parent


class MutateTheBest(Tuner):
    """A tuner by NNI's contract: random parameters first, then the best ones with one key drawn again."""

    def __init__(self, first=4):
        self.first = first
        self.results = []

    def update_search_space(self, search_space):
        self.search_space = search_space

    def generate_parameters(self, parameter_id, **kwargs):
        parameters = {key: self.draw(entry) for key, entry in self.search_space.items()}
        if len(self.results) < self.first:
            return parameters
        best = dict(max(self.results, key=lambda result: result[0])[1])
        key = random.choice(list(best))
        return {**best, key: parameters[key]}

    def receive_trial_result(self, parameter_id, parameters, value, **kwargs):
        self.results.append((value, parameters))

    @staticmethod
    def draw(entry):
        value = entry['_value']
        if entry['_type'] == 'layer_choice':
            index = random.randrange(len(value))
            return {'_value': value[index], '_idx': index}
        if entry['_type'] == 'input_choice':
            taken = [index for index in range(len(value['candidates'])) if random.random() < 0.5]
            return {'_value': [value['candidates'][index] for index in taken], '_idx': taken}
        low, high = value
        return low * (high / low) ** random.random()


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument('--trials', type=int, default=8)
    options.add_argument('--folder', type=Path, default=Path('work_dirs/nni_trials'))
    given = options.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)

    command, space_file = f'{sys.executable} trial.py', given.folder / 'space.json'
    generate = ['ss-gen', '--trial-command', command, '--trial-dir', str(HERE), '--file', str(space_file)]
    subprocess.run([sys.executable, '-m', 'strop', *generate, '--with', str(HERE / 'rates.json')], check=True)
    space = SearchSpaceFile.of(space_file)

    result = run(
        space.space,
        TrialCommand(command, space, given.folder / 'trials', cwd=HERE),
        strategy=TunerStrategy(MutateTheBest, space),
        store=given.folder / 'search.journal',
        trials=given.trials,
        callbacks=[lambda trial: print(trial.number, dict(trial.subnet), trial.values or trial.error)],
    )

    best = space.parameters(result.best.subnet)
    rate = best.pop('lr')
    architecture = given.folder / 'architecture.json'
    architecture.write_text(json.dumps(best, indent=2))
    torch.manual_seed(1)
    torch.set_num_threads(1)
    network = apply_fixed_architecture(Net(), architecture)
    print(network)
    train(network, rate, epochs=4)
    print(f'validation {result.best.values["score"]:.4f} in the search, test {accuracy(network, *tensors("test")):.4f}')


if __name__ == '__main__':
    main()
