"""The public names of the package."""

import subprocess
import sys

import pytest

import strop


def test_every_public_name_resolves():
    for name in strop.__all__:
        assert getattr(strop, name) is not None
    assert set(strop.__all__) <= set(dir(strop))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match='LayerChoise'):
        strop.LayerChoise


def test_importing_the_package_is_lean():
    code = 'import sys, strop; print([m for m in ("torch", "mmengine", "optuna", "onnx", "strop.compat") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_importing_everything_leaves_optional_packages_out():
    code = (
        'import sys, strop.cli.main, strop.algorithms, strop.export, strop.search, strop.report\n'
        'print([m for m in ("onnx", "onnxruntime", "openvino", "timm", "matplotlib", "mlxtend") if m in sys.modules])'
    )
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
