"""Evaluations that worker processes import."""

import os
import signal
import subprocess
import sys
import time

import torch

from strop.search import report_intermediate_result


def plain(subnet):
    return float(subnet['a'] * 10 + subnet['b'])


def drawn(subnet):
    """A function of the trial's own seed alone."""
    return float(torch.rand(()))


def mixed(subnet):
    """Something of everything that can happen."""
    kind = subnet['a']
    if kind == 0:
        raise ValueError('this one breaks')
    if kind == 1:
        print('on the way out', flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == 2:
        sys.exit(3)
    if kind == 3:
        time.sleep(60)
    if kind == 4:
        kept = [b'x' * 2**20 for _ in range(300)]
        time.sleep(60)
        return len(kept)
    if kind == 5:
        return lambda: None
    if kind == 6:
        return float('nan')
    print('line of', subnet['b'])
    subprocess.run(['echo', 'from a child'], check=True)
    return float(subnet['b'])


def hangs_with_a_child(subnet):
    subprocess.Popen(['sleep', '61.25'])
    time.sleep(60)


def waits_with_a_child(subnet):
    subprocess.Popen(['sleep', '62.75'])
    time.sleep(60)


def reports_without_end(subnet):
    while True:
        time.sleep(0.02)
        report_intermediate_result(0.0)


def slow(subnet):
    time.sleep(0.4)
    return float(subnet['b'])


class Supernet:
    """Holds weights, as a trained supernet does."""

    def __init__(self, size):
        self.weight = torch.nn.Parameter(torch.ones(size))
        self.rest = [torch.nn.Parameter(torch.ones(3)) for _ in range(400)]  # more than a process may have handles sent

    def __call__(self, subnet):
        if not self.weight.is_shared():
            raise RuntimeError('the weights were copied')
        return {'score': float(self.weight.sum()) + subnet['b'], 'pid': os.getpid(), 'threads': torch.get_num_threads()}


def reporting(subnet):
    """A curve that rises to the result."""
    for epoch in range(1, 4):
        report_intermediate_result(subnet['a'] * epoch / 2 + float(torch.rand(())))
    return float(subnet['a'])


def of_all_kinds(subnet):
    """Reports, and fails for some."""
    if subnet['b'] == 4:
        raise ValueError('this one breaks')
    return reporting(subnet) + float(torch.rand(()))


def stubborn(subnet):
    """Goes on when it is told to stop."""
    try:
        report_intermediate_result(subnet['a'])
    except BaseException:
        time.sleep(60)
    return float(subnet['a'])


def paced(subnet):
    """Takes long enough to be killed in."""
    score = reporting(subnet)
    time.sleep(0.03)
    return score + float(torch.rand(()))
