from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from strop.algorithms import BaseAlgorithm
from strop.cli.weights import calibration_images, check_weights, load_weights
from strop.errors import ConfigError


def test_weights_of_an_algorithm_serve_its_architecture_and_the_other_way_round(tmp_path: Path) -> None:
    algorithm = BaseAlgorithm(nn.Linear(3, 2))
    architecture = algorithm.architecture
    torch.save({'state_dict': algorithm.state_dict()}, tmp_path / 'algorithm.pth')
    torch.save(architecture.state_dict(), tmp_path / 'architecture.pth')
    wanted = architecture.module.weight.detach().clone()
    for name in ('algorithm.pth', 'architecture.pth'):
        for target in (BaseAlgorithm(nn.Linear(3, 2)), BaseAlgorithm(nn.Linear(3, 2)).architecture):
            load_weights(target, tmp_path / name)
            found = dict(target.named_parameters())
            assert torch.equal(next(value for key, value in found.items() if key.endswith('module.weight')), wanted)


def test_another_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / 'weights.pth'
    torch.save({'weigth': torch.zeros(2, 3), 'bias': torch.zeros(2)}, file)
    with pytest.raises(ConfigError, match=r"it has no 'weight'; it has 'weigth' instead\. Did you mean 'weigth'"):
        check_weights(nn.Linear(3, 2), file)
    torch.save({'weight': torch.zeros(3, 2), 'bias': torch.zeros(2)}, file)
    with pytest.raises(ConfigError, match=r"'weight' has the shape \(3, 2\) in it and \(2, 3\)"):
        check_weights(nn.Linear(3, 2), file)
    torch.save({'state_dict': {'epoch': 3}}, file)
    with pytest.raises(ConfigError, match='holds no weights'):
        check_weights(nn.Linear(3, 2), file)
    torch.save({'module.weight': torch.zeros(2, 3), 'module.bias': torch.zeros(2), 'module.spare': torch.zeros(1)}, file)
    check_weights(nn.Linear(3, 2), file)
    assert "'spare', which Linear does not use" in capsys.readouterr().err


def test_how_many_images_recalibrate() -> None:
    data = {'train_dataloader': {'batch_size': 1}}
    assert calibration_images(data, None) == 4096
    assert calibration_images(data, 7) == 7
    assert calibration_images({}, None) == 0
    assert calibration_images({**data, 'train_cfg': {'calibrate_sample_num': -1}}, None) == 0
    assert calibration_images({**data, 'val_cfg': {'calibrate_sample_num': 16}}, None) == 16
    assert calibration_images({**data, 'model': {'norm_training': True}}, None) == 0
