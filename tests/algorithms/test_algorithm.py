import copy
import pickle

import pytest
import torch
from engine.tiny import preprocessor, supernet, train_config
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor, BaseModel, BaseModule
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from strop.algorithms import SPOS, BaseAlgorithm, PlainArchitecture, build_architecture
from strop.engine import build_runner
from strop.errors import ComponentTypeError, ConfigError, ModeError, TrainingError
from strop.mutables import LayerChoice, ValueChoice
from strop.mutators import OneShotMutator
from strop.registry import ALGORITHMS, MODELS


class Toy(BaseModel):
    """An OpenMMLab-style architecture of one weight."""

    def __init__(self, data_preprocessor=None, init_cfg=None):
        super().__init__(data_preprocessor, init_cfg)
        self.weight = nn.Parameter(torch.tensor([2.0]))
        self.asked = []

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.asked.append((mode, data_samples))
        if mode == 'loss':
            return {'loss_a': (self.weight * inputs).mean(), 'loss_b': self.weight.sum(), 'acc': torch.tensor(0.5)}
        return self.weight * inputs if mode == 'tensor' else [self.weight * x for x in inputs]


def batch(size=2):
    return {'inputs': torch.ones(size, 1), 'data_samples': list(range(size))}


# -- the three modes ---------------------------------------------------------------------------


def test_three_modes_go_to_the_architecture():
    algorithm = BaseAlgorithm(Toy())
    inputs = torch.ones(2, 1)
    assert sorted(algorithm(inputs, [1, 2], mode='loss')) == ['acc', 'loss_a', 'loss_b']
    assert algorithm(inputs, mode='tensor').tolist() == [[2.0], [2.0]]
    assert algorithm(inputs).tolist() == [[2.0], [2.0]]
    assert len(algorithm(inputs, [1, 2], mode='predict')) == 2
    assert algorithm.architecture.asked == [('loss', [1, 2]), ('tensor', None), ('tensor', None), ('predict', [1, 2])]


@pytest.mark.parametrize('mode', ['train', 'Loss', '', None])
def test_any_other_mode_is_a_runtime_error_that_names_the_three(mode):
    with pytest.raises(RuntimeError) as caught:
        BaseAlgorithm(Toy())(torch.ones(1, 1), mode=mode)
    assert isinstance(caught.value, ModeError)
    assert all(repr(name) in str(caught.value) for name in ('loss', 'tensor', 'predict'))
    assert repr(mode) in str(caught.value)


def test_each_mode_can_be_overridden():
    class Mine(BaseAlgorithm):
        def loss(self, batch_inputs, data_samples=None):
            return {'loss': torch.tensor(1.0)}

        def _forward(self, batch_inputs, data_samples=None):
            return 'raw'

        def _predict(self, batch_inputs, data_samples=None):
            return ['sample']

    algorithm = Mine(Toy())
    assert algorithm(None, mode='loss') == {'loss': torch.tensor(1.0)}
    assert algorithm(None, mode='tensor') == 'raw'
    assert algorithm(None, mode='predict') == ['sample']
    assert algorithm.architecture.asked == []


# -- the class that the tutorials write ------------------------------------------------------------


def test_subclass_with_only_architecture_and_batch_inputs_trains_through_the_runner(registries, tmp_path):
    @MODELS.register_module()
    class XXX(BaseAlgorithm):
        def __init__(self, architecture):
            super().__init__(architecture)
            self.seen = 0

        def loss(self, batch_inputs):
            self.seen += len(batch_inputs)
            return {'loss': self.architecture(batch_inputs).square().mean()}

        def aaa(self):
            return self.seen

    config = train_config(model=dict(type='XXX', architecture=dict(supernet_fixed(), data_preprocessor=preprocessor)))
    runner = build_runner(config, work_dir=tmp_path)
    before = copy.deepcopy(runner.model.state_dict())
    runner.train()
    assert runner.model.aaa() == 2 * 96
    assert any(not torch.equal(before[name], value) for name, value in runner.model.state_dict().items())


def supernet_fixed():
    choices = dict.fromkeys(('backbone.layers.0.0', 'backbone.layers.0.1', 'backbone.layers.1.0'), 'shuffle_3x3')
    return dict(type='sub_model', cfg=supernet, fix_subnet=choices)


def test_base_algorithm_is_buildable_and_trains(tmp_path):
    architecture = dict(supernet_fixed(), data_preprocessor=preprocessor)
    runner = build_runner(train_config(model=dict(type='BaseAlgorithm', architecture=architecture)), work_dir=tmp_path)
    before = copy.deepcopy(runner.model.state_dict())
    runner.train()
    assert type(runner.model) is BaseAlgorithm
    moved = [name for name, value in runner.model.named_parameters() if not torch.equal(before[name], value)]
    assert len(moved) == len(list(runner.model.named_parameters()))
    assert set(runner.test()) == {'accuracy/top1'}


def test_algorithm_keyword_of_a_config_is_the_model(tmp_path):
    config = train_config()
    config.algorithm = config.pop('model')
    runner = build_runner(config, work_dir=tmp_path)
    assert isinstance(runner.model, SPOS)
    runner.train()
    assert runner.iter == 6


def test_scopes_and_old_registry_names_reach_one_class():
    assert MODELS.get('BaseAlgorithm') is MODELS.get('mmrazor.BaseAlgorithm') is MODELS.get('strop.BaseAlgorithm')
    assert ALGORITHMS.get('SPOS') is SPOS


# -- data preprocessor and initialization --------------------------------------------------------------


def test_data_preprocessor_falls_back_to_the_architectures():
    own = BaseDataPreprocessor()
    toy = Toy(data_preprocessor=own)
    assert BaseAlgorithm(toy).data_preprocessor is own
    other = BaseDataPreprocessor()
    assert BaseAlgorithm(Toy(data_preprocessor=own), data_preprocessor=other).data_preprocessor is other
    built = BaseAlgorithm(Toy(), data_preprocessor=dict(type='ClsDataPreprocessor', mean=[1.0], std=[2.0]))
    assert type(built.data_preprocessor).__name__ == 'ClsDataPreprocessor'
    config = BaseAlgorithm(dict(supernet, data_preprocessor=preprocessor))
    assert config.data_preprocessor.mean.item() == 78.0


@pytest.mark.parametrize('wrapped', [False, True])
def test_pretrained_initialization(tmp_path, wrapped):
    first = BaseAlgorithm(Toy())
    first.architecture.weight.data.fill_(7.0)
    state = first.state_dict()
    path = tmp_path / 'first.pth'
    torch.save({'state_dict': state} if wrapped else state, path)
    second = BaseAlgorithm(Toy(), init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    second.init_weights()
    assert second.architecture.weight.item() == 7.0


def test_pretrained_initialization_is_done_by_the_runner(tmp_path):
    source = MODELS.build(supernet)
    for parameter in source.parameters():
        nn.init.constant_(parameter, 0.25)
    path = tmp_path / 'supernet.pth'
    torch.save(source.state_dict(), path)
    config = train_config()
    config.model.architecture['init_cfg'] = dict(type='Pretrained', checkpoint=str(path))
    config.optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.0))
    runner = build_runner(config, work_dir=tmp_path)
    runner.train()
    assert all(bool((parameter == 0.25).all()) for parameter in runner.model.architecture.parameters())


# -- architectures -----------------------------------------------------------------------------------


def test_architecture_is_a_config_a_base_model_or_any_module():
    assert type(build_architecture(supernet)).__name__ == 'ImageClassifier'
    toy = Toy()
    assert build_architecture(toy) is toy
    assert isinstance(build_architecture(nn.Linear(1, 1)), PlainArchitecture)
    with pytest.raises(ConfigError, match=r"needs the key 'type' or 'cfg_path', but has 'backbone'\.$"):
        build_architecture(dict(backbone=dict(type='ResNet')))


def test_architecture_of_a_config_file(tmp_path):
    (tmp_path / 'net.py').write_text("model = dict(type='torch.nn.Linear', in_features=3, out_features=4)\n")
    built = build_architecture(dict(cfg_path=str(tmp_path / 'net.py'), out_features=2))
    assert (built.module.in_features, built.module.out_features) == (3, 2)
    with pytest.raises(ConfigError, match='there is nothing at'):
        build_architecture(dict(cfg_path=str(tmp_path / 'nut.py')))
    with pytest.raises(ConfigError, match='No pretrained weights are known for'):
        build_architecture(dict(cfg_path=str(tmp_path / 'net.py'), pretrained=True))


@pytest.mark.parametrize('kind', ['MMClsArchitecture', 'mmrazor.MMDetArchitecture', 'GeneralArchitecture'])
def test_wrapping_of_0x_is_unwrapped(kind):
    algorithm = BaseAlgorithm(dict(type=kind, model=supernet))
    assert type(algorithm.architecture).__name__ == 'ImageClassifier'
    assert type(algorithm.architecture.backbone).__name__ == 'SearchableShuffleNetV2'


@pytest.mark.parametrize('given', [3, 'resnet18', None, [nn.Linear(1, 1)], nn.Linear])
def test_anything_else_is_no_architecture(given):
    with pytest.raises(TypeError, match='`architecture` must be') as caught:
        BaseAlgorithm(given)
    assert isinstance(caught.value, ComponentTypeError)


def test_loss_and_metric_are_for_plain_modules():
    with pytest.raises(ConfigError, match='computes its own losses'):
        BaseAlgorithm(Toy(), loss=nn.MSELoss())


# -- train_step -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('wrap', [OptimWrapper, lambda optimizer: optimizer])
def test_train_step_by_hand(wrap):
    algorithm = BaseAlgorithm(Toy())
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.25)
    log = algorithm.train_step(batch(), wrap(optimizer))
    # d/dw (mean(w x) + w) = 1 + 1
    assert algorithm.architecture.weight.item() == 2.0 - 0.25 * 2
    assert log['loss'].item() == 4.0
    assert log['loss_a'].item() == log['loss_b'].item() == 2.0
    assert log['acc'].item() == 0.5


def test_train_step_needs_an_optimizer():
    with pytest.raises(TypeError, match='needs one OptimWrapper or torch optimizer, but got dict'):
        BaseAlgorithm(Toy()).train_step(batch(), {'type': 'SGD'})


def test_train_step_with_the_old_signature(registries, tmp_path):
    calls = []

    @ALGORITHMS.register_module()
    class Old(BaseAlgorithm):
        def __init__(self, **kwargs):
            super(Old, self).__init__(**kwargs)  # noqa: UP008

        def train_step(self, data, optimizer):
            calls.append(type(optimizer))
            if self.retraining:
                return super(Old, self).train_step(data, optimizer)  # noqa: UP008
            subnet = self.mutator.sample_subnet()
            self.mutator.set_subnet(subnet)
            return super(Old, self).train_step(data, optimizer)  # noqa: UP008

    algorithm = Old(architecture=nn.Sequential(LayerChoice([nn.Linear(2, 2), nn.Linear(2, 2)])), mutator=OneShotMutator())
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.1)
    data = (torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
    assert set(algorithm.train_step(data, optimizer)) == {'loss'}
    assert calls == [torch.optim.SGD]
    algorithm.train_step(data, optim_wrapper=OptimWrapper(optimizer))

    config = train_config(
        algorithm=dict(type='Old', architecture=supernet, mutator=dict(type='OneShotMutator'), data_preprocessor=preprocessor)
    )
    config.pop('model')
    runner = build_runner(config, work_dir=tmp_path)
    runner.train()
    assert calls[2:] == [OptimWrapper] * 6


def test_old_keywords():
    class Distiller(BaseModule):
        pass

    linear = nn.Sequential(LayerChoice([nn.Linear(2, 2), nn.Identity()], key='a'))
    pruner = nn.Identity()
    algorithm = BaseAlgorithm(architecture=linear, mutator=None, distiller=Distiller(), pruner=pruner, channel_cfg=None)
    assert isinstance(algorithm.distiller, Distiller)
    assert algorithm.pruner is pruner
    assert algorithm.mutator is None
    assert algorithm.retraining is False
    fixed = BaseAlgorithm(architecture=linear, retraining=True, mutable_cfg={'a': 0})
    assert isinstance(fixed.architecture.module[0], nn.Linear)


def test_keyword_of_mmrazor_1x():
    relu = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
    assert BaseAlgorithm(relu, module_inplace=True).architecture.module[1].inplace
    assert not BaseAlgorithm(relu, module_inplace=False).architecture.module[1].inplace


@pytest.mark.parametrize('name', ['mutator', 'distiller', 'pruner'])
def test_components_of_the_wrong_class_are_type_errors(name):
    model = nn.Sequential(LayerChoice([nn.Linear(2, 2), nn.Identity()]))
    wrong = nn.Identity() if name == 'mutator' else 'a string'
    with pytest.raises(TypeError, match=f'`{name}` must be') as caught:
        BaseAlgorithm(model, **{name: wrong})
    assert isinstance(caught.value, ComponentTypeError)


def test_several_optimizers_are_refused_where_one_trains_all():
    algorithm = BaseAlgorithm(nn.Linear(4, 2))
    several = OptimWrapperDict(architecture=OptimWrapper(torch.optim.SGD(algorithm.parameters(), lr=0.1)))
    with pytest.raises(ComponentTypeError, match=r'needs one OptimWrapper.*got OptimWrapperDict.*paramwise_cfg'):
        algorithm.train_step((torch.zeros(3, 4), torch.tensor([0, 1, 0])), several)


def test_mutator_without_anything_to_decide_is_refused():
    with pytest.raises(ConfigError, match='nothing to decide'):
        BaseAlgorithm(nn.Linear(1, 1), mutator=dict(type='OneShotMutator'))
    with pytest.raises(ConfigError, match='set retraining=True'):
        model = nn.Sequential(LayerChoice([nn.Linear(2, 2), nn.Identity()], key='a'))
        BaseAlgorithm(model, mutator=dict(type='OneShotMutator'), mutable_cfg={'a': 1})


def test_channel_configs_are_refused_by_name():
    with pytest.raises(ConfigError, match='channel_cfg'):
        BaseAlgorithm(Toy(), channel_cfg='channels.yaml')


# -- a plain module, a plain DataLoader ---------------------------------------------------------------------


def blobs(count=64):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    return TensorDataset(torch.randn(count, 2, generator=generator) + 4.0 * labels[:, None], labels)


def accuracy(outputs, labels):
    return {'accuracy': (outputs.argmax(1) == labels).float().mean().item()}


def test_plain_module_in_a_loop_of_ones_own():
    algorithm = BaseAlgorithm(nn.Linear(2, 2), loss=nn.CrossEntropyLoss(), metric=accuracy)
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.2)
    losses = [
        algorithm.train_step(list(pair), optimizer)['loss'].item()
        for _ in range(8)
        for pair in DataLoader(blobs(), batch_size=16)
    ]
    assert losses[-1] < 0.3 < losses[0]
    inputs, labels = blobs().tensors
    assert accuracy(algorithm(inputs), labels)['accuracy'] > 0.95


@pytest.mark.parametrize('build', ['config', 'instance', 'runner'])
def test_plain_module_and_data_loader_through_the_runner(tmp_path, build):
    module = nn.Sequential(LayerChoice([nn.Linear(2, 2), nn.Linear(2, 2, bias=False)]))
    parts = dict(architecture=module, loss=nn.CrossEntropyLoss(), metric=accuracy)
    common = dict(
        train_dataloader=DataLoader(blobs(), batch_size=16),
        val_dataloader=DataLoader(blobs(), batch_size=16),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.5)),
        train_cfg=dict(by_epoch=True, max_epochs=20, val_interval=20),
        log_level='WARNING',
    )
    if build == 'runner':
        runner = Runner(
            SPOS(**parts),
            str(tmp_path),
            val_cfg=dict(),
            val_evaluator=dict(type='FunctionMetric', function=accuracy),
            default_scope='strop',
            **common,
        )
    else:
        model = dict(type='SPOS', **parts) if build == 'config' else SPOS(**parts)
        runner = build_runner(dict(model=model, **common), work_dir=tmp_path)
    runner.train()
    assert runner.val_loop.run()['accuracy'] > 0.95


def test_no_evaluator_and_no_metric_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match='val_evaluator'):
        build_runner(
            dict(
                model=BaseAlgorithm(nn.Linear(2, 2)),
                train_dataloader=DataLoader(blobs(), batch_size=16),
                val_dataloader=DataLoader(blobs(), batch_size=16),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.2)),
                train_cfg=dict(by_epoch=True, max_epochs=1),
            ),
            work_dir=tmp_path,
        )


# -- losses that are not finite ---------------------------------------------------------------------------------


def test_nan_loss_stops_with_step_and_subnet():
    model = nn.Sequential(LayerChoice({'good': nn.Linear(2, 2), 'bad': nn.Linear(2, 2)}, key='op'))
    model[0]['bad'].weight.data.fill_(float('nan'))
    before = model[0]['good'].weight.clone()
    spos = SPOS(model)
    optimizer = torch.optim.SGD(spos.parameters(), lr=0.1)
    with pytest.raises(TrainingError, match='not finite') as caught:
        for _ in range(50):
            spos.train_step((torch.randn(4, 2), torch.tensor([0, 1, 0, 1])), optimizer)
    assert f'step {spos.step} ' in str(caught.value)
    assert "{'op': 'bad'}" in str(caught.value)
    assert torch.isfinite(model[0]['good'].weight).all()
    assert spos.step == 0 or not torch.equal(before, model[0]['good'].weight)


@pytest.mark.parametrize('kind', ['SPOS', 'sub_model'])
def test_nan_loss_stops_the_runner_before_it_is_saved(tmp_path, kind):
    config = train_config(default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1)))
    if kind == 'sub_model':
        config.model = dict(supernet_fixed(), data_preprocessor=preprocessor)
    config.optim_wrapper.optimizer.lr = 1e30
    with pytest.raises(TrainingError, match=r'step \d'):
        build_runner(config, work_dir=tmp_path).train()
    saved = sorted(tmp_path.glob('iter_*.pth'))
    assert saved
    assert len(saved) < 6


# -- copies ---------------------------------------------------------------------------------------------------------


def searchable():
    torch.manual_seed(0)
    return nn.Sequential(LayerChoice([nn.Linear(4, 4), nn.Identity()], key='a'), nn.Linear(4, 2))


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_algorithm_with_mutator_can_be_copied(copied):
    spos = SPOS(searchable(), seed=3)
    spos.mutator.set_subnet({'a': 1})
    twin = copied(spos)
    assert twin.mutator is not spos.mutator
    assert twin.mutator.model is twin.architecture
    inputs = torch.randn(3, 4)
    assert torch.equal(twin(inputs), spos(inputs))
    twin.mutator.set_subnet({'a': 0})
    assert twin.mutator.current_choices == {'a': 0}
    assert spos.mutator.current_choices == {'a': 1}
    data = (torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))
    steps = [spos.train_step(data, torch.optim.SGD(spos.parameters(), lr=0.1))['loss'].item() for _ in range(4)]
    assert steps == [twin.train_step(data, torch.optim.SGD(twin.parameters(), lr=0.1))['loss'].item() for _ in range(4)]


def test_ema_hook(tmp_path):
    config = train_config(custom_hooks=[dict(type='EMAHook', momentum=0.5)])
    runner = build_runner(config, work_dir=tmp_path)
    runner.train()
    kept = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    assert 'ema_state_dict' in kept
    name = 'architecture.head.fc.weight'
    averaged, own = kept['state_dict'][name], kept['ema_state_dict'][f'module.{name}']
    assert not torch.equal(averaged, own)
    again = build_runner(config, work_dir=tmp_path, resume=True)
    again.train_cfg = None
    assert set(runner.test()) == {'accuracy/top1'}


def test_choices_of_values_train_too():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = ValueChoice([1.0, 2.0], key='scale')
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(x) * self.scale()

    spos = SPOS(Scaled())
    optimizer = torch.optim.SGD(spos.parameters(), lr=0.1)
    seen = set()
    for _ in range(10):
        spos.train_step((torch.randn(4, 2), torch.tensor([0, 1, 0, 1])), optimizer)
        seen.add(spos.mutator.current_choices['scale'])
    assert seen == {1.0, 2.0}


def test_config_of_a_file_with_custom_imports(tmp_path, registries, monkeypatch):
    (tmp_path / 'my_algorithm_of_users.py').write_text(
        'from strop.algorithms import BaseAlgorithm\n'
        'from strop.registry import MODELS\n\n\n'
        '@MODELS.register_module()\n'
        'class OfUsers(BaseAlgorithm):\n'
        '    pass\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / 'config.py'
    path.write_text(
        "custom_imports = dict(imports=['my_algorithm_of_users'], allow_failed_imports=False)\n"
        f'model = dict(type="OfUsers", architecture={supernet_fixed()!r}, data_preprocessor={preprocessor!r})\n'
    )
    loaded = Config.fromfile(path)
    config = train_config(model=loaded.model, custom_imports=loaded.custom_imports)
    runner = build_runner(config, work_dir=tmp_path / 'work')
    assert type(runner.model).__name__ == 'OfUsers'


def test_inputs_may_be_called_as_mmrazor_calls_them():
    algorithm = BaseAlgorithm(nn.Linear(4, 2))
    x = torch.rand(3, 4)
    assert torch.equal(algorithm(batch_inputs=x), algorithm(x))
    with pytest.raises(ConfigError, match='needs a batch of `inputs`'):
        algorithm()


def test_an_old_forward_gets_the_batches_of_today():
    class Old(BaseAlgorithm):
        def forward(self, batch_inputs, data_samples=None, mode='tensor'):
            return super().forward(2 * batch_inputs, data_samples, mode)

    class Older(Old):
        """Its forward is inherited."""

    for kind in (Old, Older):
        algorithm, plain = kind(Toy()), BaseAlgorithm(Toy())
        optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.0)
        assert float(algorithm.train_step(batch(), optimizer)['loss_a']) == 2 * float(
            plain.train_step(batch(), torch.optim.SGD(plain.parameters(), lr=0.0))['loss_a']
        )
        assert torch.equal(algorithm(torch.ones(2, 1)), plain(2 * torch.ones(2, 1)))
        assert torch.equal(algorithm(batch_inputs=torch.ones(2, 1)), algorithm(inputs=torch.ones(2, 1)))


# -- what training steps of users call -------------------------------------------------------------


def test_verbs_of_the_mutator_are_those_of_the_algorithm():
    torch.manual_seed(0)
    choice = LayerChoice([nn.Linear(4, 4), nn.Identity()])
    algorithm = BaseAlgorithm(nn.Sequential(choice, nn.Linear(4, 2)), mutator=OneShotMutator())
    algorithm.set_subnet(algorithm.sample_subnet())
    assert set(algorithm.mutator.current_subnet()) == {'module.0'}
    algorithm.set_max_subnet()
    largest = algorithm.mutator.current_subnet()
    algorithm.set_min_subnet()
    assert algorithm.mutator.current_subnet() != largest
    for verb in ('sample_subnet', 'set_max_subnet', 'set_min_subnet'):
        with pytest.raises(ConfigError, match='no subnets to choose from'):
            getattr(BaseAlgorithm(nn.Linear(4, 2)), verb)()


def test_a_step_of_the_users_unpacks_batches_of_either_form():
    class Unpacking(BaseAlgorithm):
        def train_step(self, data, optim_wrapper):
            batch_inputs, data_samples = self.data_preprocessor(data, True)
            seen.append((batch_inputs, data_samples))
            again = {**self.data_preprocessor(data, True)} if isinstance(data, dict) else None
            assert again is None or list(again) == ['inputs', 'data_samples']
            return self.parse_losses(self(batch_inputs, data_samples, mode='loss'))[1]

    seen = []
    algorithm = Unpacking(Toy())
    inputs, samples = batch().values()
    logs = [
        algorithm.train_step(data, optim_wrapper=None)
        for data in ({'inputs': inputs, 'data_samples': samples}, (inputs, samples))
    ]
    assert logs[0] == logs[1]
    assert all(torch.equal(first, inputs) and second == samples for first, second in seen)
    assert len(seen) == 2
    assert BaseAlgorithm(Toy()).data_preprocessor(batch()).keys() == batch().keys()
