"""A mutator written for NNI 1.9, as its documentation writes it."""

from __future__ import annotations

import pytest

from strop.compat import OldImportError

from .conftest import Workspace

RANDOM_MUTATOR = """
    import warnings
    warnings.simplefilter('error')
    import numpy as np
    import torch
    import strop.compat
    from nni.nas.pytorch.mutables import InputChoice, LayerChoice, MutableScope
    from nni.nas.pytorch.mutator import Mutator

    class RandomMutator(Mutator):
        def __init__(self, model):
            super().__init__(model)  # don't forget to call super
            # do something else

        def sample_search(self):
            result = dict()
            for mutable in self.mutables:  # this is all the mutable modules in user model
                # mutables share the same key will be de-duplicated
                if isinstance(mutable, LayerChoice):
                    # decided that this mutable should choose `gen_index`
                    gen_index = np.random.randint(mutable.length)
                    result[mutable.key] = torch.tensor([i == gen_index for i in range(mutable.length)],
                                                       dtype=torch.bool)
                elif isinstance(mutable, InputChoice):
                    if mutable.n_chosen is None:  # n_chosen is None, then choose any number
                        result[mutable.key] = torch.randint(high=2, size=(mutable.n_candidates,)).view(-1).bool()
                    else:
                        perm = torch.randperm(mutable.n_candidates)
                        mask = [i in perm[:mutable.n_chosen] for i in range(mutable.n_candidates)]
                        result[mutable.key] = torch.tensor(mask, dtype=torch.bool)
            return result

        def sample_final(self):
            return self.sample_search()  # use the same logic here. you can do something different


    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.op = LayerChoice([torch.nn.Linear(4, 4), torch.nn.Identity(), torch.nn.Tanh()], key='op')
            self.skip = InputChoice(n_candidates=3, n_chosen=2, key='skip')
            self.any = InputChoice(n_candidates=2, key='any')
            self.head = torch.nn.Linear(4, 2)

        def forward(self, x):
            y = self.op(x)
            out = self.skip([x, y, y * 2])
            extra = self.any([x, y])
            return self.head(out if extra is None else out + extra)

    np.random.seed(0)
    torch.manual_seed(0)
    model = Model()
    mutator = RandomMutator(model)
    criterion = torch.nn.CrossEntropyLoss()
    data_loader = [(torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 1]))] * 4
    for _ in range(2):
        for x, y in data_loader:
            mutator.reset()  # reset all the choices in model
            out = model(x)  # like traditional model
            loss = criterion(out, y)
            loss.backward()
    before = mutator.status()
    final = mutator.export()
    print({key: (str(value.dtype), len(value)) for key, value in final.items()})
    print(int(final['op'].sum()), int(final['skip'].sum()), mutator.status() == before)
"""


def test_the_random_mutator_of_the_documentation_runs_without_a_warning(workspace: Workspace) -> None:
    assert workspace.run(RANDOM_MUTATOR).splitlines() == [
        "{'op': ('torch.bool', 3), 'skip': ('torch.bool', 3), 'any': ('torch.bool', 2)}",
        '1 2 True',
    ]


def test_the_classes_are_strops_own() -> None:
    from nni.nas.pytorch import mutables
    from nni.nas.pytorch.base_mutator import BaseMutator
    from nni.nas.pytorch.mutator import Mutator
    from nni.nas.pytorch.random import RandomMutator
    from nni.nas.pytorch.random.mutator import RandomMutator as Same

    import strop.mutables
    import strop.mutators

    assert mutables.LayerChoice is strop.mutables.LayerChoice
    assert mutables.InputChoice is strop.mutables.InputChoice
    assert mutables.MutableScope is strop.mutables.MutableScope
    assert (BaseMutator, Mutator) == (strop.mutators.BaseMutator, strop.mutators.Mutator)
    assert RandomMutator is Same is strop.mutators.RandomMutator


def test_a_search_with_the_old_import_lines(tmp_path) -> None:
    import json

    import torch
    from nni.nas.pytorch.callbacks import ArchitectureCheckpoint, LRSchedulerCallback
    from nni.nas.pytorch.darts import DartsMutator, DartsTrainer
    from nni.nas.pytorch.mutables import InputChoice, LayerChoice
    from nni.nas.pytorch.proxylessnas import ProxylessNasMutator, ProxylessNasTrainer
    from nni.nas.pytorch.spos import SPOSSupernetTrainer, SPOSSupernetTrainingMutator
    from nni.nas.pytorch.trainer import Trainer
    from nni.nas.pytorch.utils import AverageMeterGroup

    assert issubclass(DartsTrainer, Trainer)
    assert issubclass(SPOSSupernetTrainer, Trainer)
    assert issubclass(ProxylessNasTrainer, Trainer)
    assert all(isinstance(cls, type) for cls in (ProxylessNasMutator, SPOSSupernetTrainingMutator, AverageMeterGroup))

    class Node(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.ops = torch.nn.ModuleList(
                LayerChoice([torch.nn.Linear(4, 4), torch.nn.Identity()], key=f'edge{index}') for index in range(3)
            )
            self.switch = InputChoice(choose_from=[op.key for op in self.ops], n_chosen=2, key='node')

        def forward(self, x):
            return self.switch([op(x) for op in self.ops])

    torch.manual_seed(0)
    model = torch.nn.Sequential(Node(), torch.nn.Linear(4, 2))
    dataset = torch.utils.data.TensorDataset(torch.randn(16, 4), torch.arange(16) % 2)
    optim = torch.optim.SGD(model.parameters(), 0.025, momentum=0.9, weight_decay=3.0e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optim, 2, eta_min=0.001)
    trainer = DartsTrainer(
        model,
        loss=torch.nn.CrossEntropyLoss(),
        metrics=lambda output, target: {'acc1': (output.argmax(1) == target).float().mean().item()},
        optimizer=optim,
        num_epochs=2,
        dataset_train=dataset,
        dataset_valid=dataset,
        mutator=DartsMutator(model),
        batch_size=4,
        workers=0,
        log_frequency=10,
        unrolled=True,
        callbacks=[LRSchedulerCallback(scheduler), ArchitectureCheckpoint(str(tmp_path / 'checkpoints'))],
        work_dir=tmp_path,
    )
    trainer.train()
    trainer.validate()
    found = json.loads((tmp_path / 'checkpoints' / 'epoch_1.json').read_text())
    assert set(found) == {'edge0', 'edge1', 'edge2', 'node'}
    assert len(found['node']) == 2


def test_a_mutator_that_runs_the_choices_itself() -> None:
    import torch
    from nni.nas.pytorch.base_mutator import BaseMutator
    from nni.nas.pytorch.mutables import LayerChoice

    class First(BaseMutator):
        def on_forward_layer_choice(self, mutable, *args, **kwargs):
            return mutable[0](*args, **kwargs), torch.tensor([True, False])

    model = torch.nn.Sequential(LayerChoice([torch.nn.ReLU(), torch.nn.Identity()], key='act'))
    mutator = First(model)
    assert torch.equal(model(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))
    assert [mutable.key for mutable in mutator.mutables] == ['act']


@pytest.mark.parametrize(
    ('line', 'words'),
    [
        ('from nni.nas.pytorch.search_space_zoo import ENASMicroLayer', "'ENASMicroLayer' of nni is not supported yet"),
        ('from nni.nas.pytorch.mutables import LayerChoise', "Did you mean 'LayerChoice'"),
        ('import nni.nas.pytorch.mutable', "Did you mean .*'mutables'"),
    ],
)
def test_what_is_missing_is_told(line: str, words: str) -> None:
    with pytest.raises(OldImportError, match=words):
        exec(line)


# A tuner and a trial in files of their own, with NNI's import lines.
TUNER = """
    import random
    import nni
    from nni.tuner import Tuner
    from nni.utils import OptimizeMode, extract_scalar_reward

    class CustomizedTuner(Tuner):
        def __init__(self, optimize_mode='maximize'):
            self.optimize_mode = OptimizeMode(optimize_mode)
            self.best = None

        def update_search_space(self, search_space):
            self.search_space = search_space

        def generate_parameters(self, parameter_id, **kwargs):
            if parameter_id >= 12:
                raise nni.NoMoreTrialError('no more parameters now.')
            chosen = {}
            for key, value in self.search_space.items():
                if value['_type'] == 'layer_choice':
                    index = random.randint(0, len(value['_value']) - 1)
                    chosen[key] = {'_value': value['_value'][index], '_idx': index}
                elif value['_type'] == 'input_choice':
                    candidates, n_chosen = value['_value']['candidates'], value['_value']['n_chosen']
                    index = sorted(random.sample(range(len(candidates)), n_chosen))
                    chosen[key] = {'_value': [candidates[i] for i in index], '_idx': index}
                else:
                    chosen[key] = random.uniform(*value['_value'])
            return chosen

        def receive_trial_result(self, parameter_id, parameters, value, **kwargs):
            reward = extract_scalar_reward(value)
            if self.best is None or reward > self.best[0]:
                self.best = (reward, parameters)
"""

TRIAL = """
    import strop.compat
    import nni
    import torch
    from nni.nas.pytorch.classic_nas import get_and_apply_next_architecture
    from nni.nas.pytorch.mutables import InputChoice, LayerChoice

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = LayerChoice([torch.nn.Linear(4, 8), torch.nn.Linear(4, 8, bias=False)], key='conv')
            self.skip = InputChoice(n_candidates=2, n_chosen=1, key='skip')
            self.head = torch.nn.Linear(8, 2)

        def forward(self, x):
            y = self.conv(x)
            return self.head(self.skip([y, -y]))

    params = nni.get_next_parameter()
    model = Net()
    get_and_apply_next_architecture(model)
    assert type(model.conv) is torch.nn.Linear
    model(torch.zeros(1, 4))
    nni.report_intermediate_result(0.1)
    size = sum(parameter.numel() for parameter in model.conv.parameters())
    nni.report_final_result({'default': size + params['lr'], 'id': nni.get_sequence_id()})
"""


def test_a_tuner_and_a_trial_written_for_nni_run_unchanged(workspace: Workspace) -> None:
    workspace.put('my_tuner.py', TUNER)
    workspace.put('trial.py', TRIAL)
    out = workspace.run("""
        import json, sys
        import strop.compat
        from my_tuner import CustomizedTuner
        from strop.mutables import SearchSpaceFile
        from strop.search import TrialCommand, TunerStrategy, run

        space = SearchSpaceFile({
            'conv': {'_type': 'layer_choice', '_value': ['0', '1']},
            'skip': {'_type': 'input_choice', '_value': {'candidates': ['', ''], 'n_chosen': 1}},
            'lr': {'_type': 'uniform', '_value': [0.0, 0.5]},
        })
        strategy = TunerStrategy(CustomizedTuner(), space)
        def evaluate(subnet):
            return {'score': {0: 40, 1: 32}[subnet['conv']] + subnet['lr'], 'skip': subnet['skip']}
        found = run(space.space, evaluate, strategy=strategy, trials=100)
        print(len(found.trials), found.stopped)
        print(strategy.tuner.best[0] == found.best.values['score'])
        trial = TrialCommand(f'{sys.executable} trial.py', space, 'trials')
        print(trial(space.subnet({'conv': 1, 'skip': 0, 'lr': 0.25})))
    """)
    assert out.splitlines() == ['12 exhausted', 'True', "{'score': 32.25, 'id': 0}"]


def test_the_trial_side_and_fixed_architectures_are_strops_own() -> None:
    import nni
    from nni.nas.pytorch.fixed import FixedArchitecture, apply_fixed_architecture
    from nni.nas.pytorch.spos import SPOSEvolution
    from nni.tuner import Tuner

    import strop.mutators
    import strop.search
    from strop.search import trial_side

    assert nni.get_next_parameter is trial_side.get_next_parameter
    assert nni.report_final_result is trial_side.report_final_result
    assert nni.NoMoreTrialError is strop.search.NoMoreTrialError
    assert Tuner is nni.tuner.Tuner is strop.search.Tuner
    assert SPOSEvolution is strop.search.SPOSTuner
    assert apply_fixed_architecture is strop.mutators.apply_fixed_architecture
    assert FixedArchitecture is strop.mutators.FixedArchitecture


def test_tensors_are_encoded_as_lists() -> None:
    import json

    import torch
    from nni.nas.pytorch.utils import TorchTensorEncoder

    assert json.dumps({'op': torch.tensor([False, True])}, cls=TorchTensorEncoder) == '{"op": [false, true]}'
    with pytest.raises(TypeError, match='not JSON serializable'):
        json.dumps({'op': {1}}, cls=TorchTensorEncoder)
