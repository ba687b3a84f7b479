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
