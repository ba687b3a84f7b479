"""Files as users of MMRazor wrote them after its tutorials, with their import lines and the bodies filled in."""

SPOS = """
    from mmrazor.models.builder import ALGORITHMS
    from .base import BaseAlgorithm

    @ALGORITHMS.register_module()
    class SPOS(BaseAlgorithm):
        def __init__(self, **kwargs):
            super(SPOS, self).__init__(**kwargs)
            self.calls = []

        def _init_flops(self):
            self.flops = {key: 0 for key in self.mutator.search_spaces}

        def get_subnet_flops(self):
            self._init_flops()
            return sum(self.flops.values())

        def train_step(self, data, optimizer):
            if self.retraining:
                outputs = super(SPOS, self).train_step(data, optimizer)
            else:
                subnet_dict = self.mutator.sample_subnet()
                self.mutator.set_subnet(subnet_dict)
                outputs = super(SPOS, self).train_step(data, optimizer)
            self.calls.append('train_step')
            return outputs
"""

ONE_SHOT_MUTATOR = """
    from mmrazor.models.builder import MUTATORS
    from .base import BaseMutator


    @MUTATORS.register_module()
    class OneShotMutator(BaseMutator):

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.calls = []

        @staticmethod
        def get_random_mask(space_info):
            # always the last alternative that is allowed, so that a test can tell
            space_mask = space_info['space_mask']
            mask = space_mask.clone().zero_()
            mask[space_mask.nonzero().flatten()[-space_info['num_chosen']:]] = 1
            return mask

        def sample_subnet(self):
            self.calls.append('sample_subnet')
            subnet_dict = dict()
            for name, space_info in self.search_spaces.items():
                subnet_dict[name] = self.get_random_mask(space_info)
            return subnet_dict

        def set_subnet(self, subnet_dict):
            self.calls.append('set_subnet')
            super().set_subnet(subnet_dict)

        @staticmethod
        def reset_in_subnet(m, in_subnet=True):
            m.__in_subnet__ = in_subnet

        def set_chosen_subnet(self, subnet_dict):
            self.calls.append('set_chosen_subnet')
            super().set_chosen_subnet(subnet_dict)

        def mutation(self, subnet_dict, prob=0.1):
            return {name: self.get_random_mask(self.search_spaces[name]) for name in subnet_dict}

        @staticmethod
        def crossover(subnet_dict1, subnet_dict2):
            return {name: subnet_dict1[name] for name in subnet_dict2}
"""

AUTOSLIM = """
    from typing import Dict, List, Optional, Union
    import torch
    from mmengine.model import BaseModel
    from mmengine.optim import OptimWrapper
    from mmengine.structures import BaseDataElement
    from torch import nn

    from mmrazor.models.distillers import ConfigurableDistiller
    from mmrazor.models.mutators import OneShotChannelMutator
    from mmrazor.models.utils import add_prefix
    from mmrazor.registry import MODELS
    from ..base import BaseAlgorithm

    VALID_MUTATOR_TYPE = Union[OneShotChannelMutator, Dict]
    VALID_DISTILLER_TYPE = Union[ConfigurableDistiller, Dict]

    @MODELS.register_module()
    class AutoSlim(BaseAlgorithm):
        def __init__(self,
                     mutator: VALID_MUTATOR_TYPE,
                     distiller: VALID_DISTILLER_TYPE,
                     architecture: Union[BaseModel, Dict],
                     data_preprocessor: Optional[Union[Dict, nn.Module]] = None,
                     init_cfg: Optional[Dict] = None,
                     num_samples: int = 2) -> None:
            super().__init__(architecture, data_preprocessor, init_cfg)
            self.mutator = self._build_mutator(mutator)
            self.mutator.prepare_from_supernet(self.architecture)

            self.distiller = self._build_distiller(distiller)
            self.distiller.prepare_from_teacher(self.architecture)
            self.distiller.prepare_from_student(self.architecture)
            self.num_samples = num_samples

        def _build_mutator(self, mutator: VALID_MUTATOR_TYPE) -> OneShotChannelMutator:
            if isinstance(mutator, dict):
                mutator = MODELS.build(mutator)
            if not isinstance(mutator, OneShotChannelMutator):
                raise TypeError(f'no OneShotChannelMutator: {type(mutator)}')
            return mutator

        def _build_distiller(self, distiller: VALID_DISTILLER_TYPE) -> ConfigurableDistiller:
            if isinstance(distiller, dict):
                distiller = MODELS.build(distiller)
            if not isinstance(distiller, ConfigurableDistiller):
                raise TypeError(f'no ConfigurableDistiller: {type(distiller)}')
            return distiller

        def sample_subnet(self):
            return self.mutator.sample_choices()

        def set_subnet(self, subnet):
            self.mutator.set_choices(subnet)

        def set_max_subnet(self):
            self.mutator.set_max_subnet()

        def set_min_subnet(self):
            self.mutator.set_min_subnet()

        def train_step(self, data: List[dict], optim_wrapper: OptimWrapper) -> Dict[str, torch.Tensor]:

            def distill_step(
                    batch_inputs: torch.Tensor, data_samples: List[BaseDataElement]
            ) -> Dict[str, torch.Tensor]:
                with optim_wrapper.optim_context(self), self.distiller.student_recorders:
                    _ = self(batch_inputs, data_samples, mode='loss')
                    soft_loss = self.distiller.compute_distill_losses()
                    subnet_losses = dict()
                    subnet_losses.update(soft_loss)
                    parsed_subnet_losses, _ = self.parse_losses(subnet_losses)
                optim_wrapper.update_params(parsed_subnet_losses)
                return subnet_losses

            batch_inputs, data_samples = self.data_preprocessor(data, True)

            total_losses = dict()
            # update the max subnet loss.
            self.set_max_subnet()
            with optim_wrapper.optim_context(self), self.distiller.teacher_recorders:
                max_subnet_losses = self(batch_inputs, data_samples, mode='loss')
                parsed_max_subnet_losses, _ = self.parse_losses(max_subnet_losses)
            optim_wrapper.update_params(parsed_max_subnet_losses)
            total_losses.update(add_prefix(max_subnet_losses, 'max_subnet'))

            # update the min subnet loss.
            self.set_min_subnet()
            min_subnet_losses = distill_step(batch_inputs, data_samples)
            total_losses.update(add_prefix(min_subnet_losses, 'min_subnet'))

            # update the random subnet loss.
            for sample_idx in range(self.num_samples):
                self.set_subnet(self.sample_subnet())
                random_subnet_losses = distill_step(batch_inputs, data_samples)
                total_losses.update(
                    add_prefix(random_subnet_losses,
                               f'random_subnet_{sample_idx}'))

            return total_losses
"""

NET = """
    import torch
    from mmengine.model import BaseModel
    from mmrazor.registry import MODELS

    @MODELS.register_module()
    class TinyNet(BaseModel):
        def __init__(self, mutable):
            super().__init__()
            self.layer = MODELS.build(mutable)
            self.head = torch.nn.Linear(8, 2)

        def forward(self, inputs, data_samples=None, mode='tensor'):
            logits = self.head(self.layer(inputs))
            if mode == 'loss':
                return dict(loss=torch.nn.functional.cross_entropy(logits, data_samples))
            return logits
"""

BASE_ALGORITHM = """
    import torch
    from torch import nn
    from mmengine.structures import BaseDataElement

    from typing import Dict, List, Optional, Tuple, Union
    from mmengine.model import BaseModel
    from mmrazor.registry import MODELS

    LossResults = Dict[str, torch.Tensor]
    TensorResults = Union[Tuple[torch.Tensor], torch.Tensor]
    PredictResults = List[BaseDataElement]
    ForwardResults = Union[LossResults, TensorResults, PredictResults]

    @MODELS.register_module()
    class BaseAlgorithm(BaseModel):

        def __init__(self,
                     architecture: Union[BaseModel, Dict],
                     data_preprocessor: Optional[Union[Dict, nn.Module]] = None,
                     init_cfg: Optional[Dict] = None):

            if isinstance(architecture, dict):
                architecture = MODELS.build(architecture)

            super().__init__(data_preprocessor, init_cfg)
            self.architecture = architecture

        def forward(self,
                    batch_inputs: torch.Tensor,
                    data_samples: Optional[List[BaseDataElement]] = None,
                    mode: str = 'tensor') -> ForwardResults:

            if mode == 'loss':
                return self.loss(batch_inputs, data_samples)
            elif mode == 'tensor':
                return self._forward(batch_inputs, data_samples)
            elif mode == 'predict':
                return self._predict(batch_inputs, data_samples)
            else:
                raise RuntimeError(f'Invalid mode "{mode}". '
                                   'Only supports loss, predict and tensor mode')

        def loss(
            self,
            batch_inputs: torch.Tensor,
            data_samples: Optional[List[BaseDataElement]] = None,
        ) -> LossResults:
            return self.architecture(batch_inputs, data_samples, mode='loss')

        def _forward(
            self,
            batch_inputs: torch.Tensor,
            data_samples: Optional[List[BaseDataElement]] = None,
        ) -> TensorResults:
            return self.architecture(batch_inputs, data_samples, mode='tensor')

        def _predict(
            self,
            batch_inputs: torch.Tensor,
            data_samples: Optional[List[BaseDataElement]] = None,
        ) -> PredictResults:
            return self.architecture(batch_inputs, data_samples, mode='predict')
"""

XXX = """
    import torch

    from mmrazor.models.algorithms import BaseAlgorithm
    from mmrazor.registry import MODELS

    @MODELS.register_module()
    class XXX(BaseAlgorithm):
        def __init__(self, architecture):
            super().__init__(architecture)
            self.seen = 0

        def loss(self, batch_inputs):
            self.aaa(batch_inputs)
            LossResults = dict(loss=self._forward(batch_inputs).square().mean())
            return LossResults

        def aaa(self, batch_inputs):
            self.seen += len(batch_inputs)

        def bbb(self):
            return self.seen
"""

SHUFFLENET = """
    # Copyright (c) OpenMMLab. All rights reserved.
    import copy
    from typing import Dict, List, Optional, Sequence, Tuple, Union

    import torch.nn as nn
    from mmcls.models.backbones.base_backbone import BaseBackbone
    from mmcv.cnn import ConvModule, constant_init, normal_init
    from mmcv.runner import ModuleList, Sequential
    from torch import Tensor
    from torch.nn.modules.batchnorm import _BatchNorm

    from mmrazor.registry import MODELS

    @MODELS.register_module()
    class SearchableShuffleNetV2(BaseBackbone):
        def __init__(self,
                     arch_setting: List[List],
                     stem_multiplier: int = 1,
                     widen_factor: float = 1.0,
                     out_indices: Sequence[int] = (4, ),
                     frozen_stages: int = -1,
                     with_last_layer: bool = True,
                     conv_cfg: Optional[Dict] = None,
                     norm_cfg: Dict = dict(type='BN'),
                     act_cfg: Dict = dict(type='ReLU'),
                     norm_eval: bool = False,
                     with_cp: bool = False,
                     init_cfg: Optional[Union[Dict, List[Dict]]] = None) -> None:
                layers_nums = 5 if with_last_layer else 4
                for index in out_indices:
                    if index not in range(0, layers_nums):
                        raise ValueError('the item in out_indices must in '
                                         f'range(0, 5). But received {index}')

                self.frozen_stages = frozen_stages
                if frozen_stages not in range(-1, layers_nums):
                    raise ValueError('frozen_stages must be in range(-1, 5). '
                                     f'But received {frozen_stages}')

                super().__init__(init_cfg)

                self.arch_setting = arch_setting
                self.widen_factor = widen_factor
                self.out_indices = out_indices
                self.conv_cfg = conv_cfg
                self.norm_cfg = norm_cfg
                self.act_cfg = act_cfg
                self.norm_eval = norm_eval
                self.with_cp = with_cp

                last_channels = 1024
                self.in_channels = 16 * stem_multiplier

                # build the first layer
                self.conv1 = ConvModule(
                    in_channels=3,
                    out_channels=self.in_channels,
                    kernel_size=3,
                    stride=2,
                    padding=1,
                    conv_cfg=conv_cfg,
                    norm_cfg=norm_cfg,
                    act_cfg=act_cfg)

                # build the middle layers
                self.layers = ModuleList()
                for channel, num_blocks, mutable_cfg in arch_setting:
                    out_channels = round(channel * widen_factor)
                    layer = self._make_layer(out_channels, num_blocks,
                                             copy.deepcopy(mutable_cfg))
                    self.layers.append(layer)

                # build the last layer
                if with_last_layer:
                    self.layers.append(
                        ConvModule(
                            in_channels=self.in_channels,
                            out_channels=last_channels,
                            kernel_size=1,
                            conv_cfg=conv_cfg,
                            norm_cfg=norm_cfg,
                            act_cfg=act_cfg))

        def _make_layer(self, out_channels: int, num_blocks: int,
                        mutable_cfg: Dict) -> Sequential:
            layers = []
            for i in range(num_blocks):
                stride = 2 if i == 0 else 1

                mutable_cfg.update(
                    module_kwargs=dict(
                        in_channels=self.in_channels,
                        out_channels=out_channels,
                        stride=stride))
                layers.append(MODELS.build(mutable_cfg))
                self.in_channels = out_channels

            return Sequential(*layers)

        def _freeze_stages(self):
            stages = [self.conv1, *self.layers[:self.frozen_stages]] if self.frozen_stages >= 0 else []
            for stage in stages:
                stage.eval()
                for param in stage.parameters():
                    param.requires_grad = False

        def init_weights(self):
            super().init_weights()
            for name, m in self.named_modules():
                if isinstance(m, nn.Conv2d):
                    normal_init(m, mean=0, std=0.01 if 'conv1' in name else 1.0 / m.weight.shape[1])
                elif isinstance(m, _BatchNorm):
                    constant_init(m, val=1, bias=0.0001)

        def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
            x = self.conv1(x)
            outs = []
            for i, layer in enumerate(self.layers):
                x = layer(x)
                if i in self.out_indices:
                    outs.append(x)
            return tuple(outs)

        def train(self, mode=True):
            super().train(mode)
            self._freeze_stages()
            if mode and self.norm_eval:
                for m in self.modules():
                    if isinstance(m, _BatchNorm):
                        m.eval()
"""
