import platform

import pytest
import torch

from strop.quantization.processor import adds_in_16_bits


@pytest.mark.parametrize(
    ('machine', 'able', 'expected'),
    [
        ('x86_64', {'avx2': True, 'avx_vnni': False, 'cpu_name': 'one of before VNNI'}, True),
        ('AMD64', {'avx2': True, 'avx512_f': True, 'avx512_vnni': False}, True),
        ('x86_64', {'avx512_f': True, 'avx512_vnni': True}, False),
        ('x86_64', {'avx2': True, 'avx_vnni': True}, False),
        ('x86_64', {}, False),
        ('aarch64', {'neon': True}, False),
        ('arm64', {'dot': True}, False),
    ],
)
def test_processors_without_vnni_add_pairs_in_16_bits(monkeypatch, machine, able, expected):
    monkeypatch.setattr(platform, 'machine', lambda: machine)
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: able, raising=False)
    adds_in_16_bits.cache_clear()
    try:
        assert adds_in_16_bits() is expected
    finally:
        adds_in_16_bits.cache_clear()


def test_older_releases_of_pytorch_are_told_by_the_system(monkeypatch):
    """The answer is the same by both ways, whatever this processor is."""
    known = adds_in_16_bits()
    monkeypatch.delattr(torch.cpu, 'get_capabilities', raising=False)
    adds_in_16_bits.cache_clear()
    try:
        assert adds_in_16_bits() is known
    finally:
        adds_in_16_bits.cache_clear()
