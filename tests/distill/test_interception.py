import math
import threading

import pytest

from strop.distill.interception import Interception, function_target, method_target, unwrapped


class Counter:
    def __init__(self):
        self.calls = []

    def add(self, x, y=1):
        """Add two numbers."""
        return x + y


def through(call, args, kwargs):
    return call(*args, **kwargs)


def test_who_came_first_stands_outermost():
    target = method_target(f'{__name__}.Counter.add')
    outer = Interception(target, lambda call, args, kwargs: 10 * call(*args, **kwargs))
    inner = Interception(target, lambda call, args, kwargs: call(*args, **kwargs) + 1)
    outer.start()
    inner.start()
    assert Counter().add(1) == 30
    outer.stop()
    assert Counter().add(1) == 3
    inner.stop()
    assert Counter().add(1) == 2


def test_the_call_may_be_left_out_and_its_arguments_changed():
    listening = Interception(method_target(f'{__name__}.Counter.add'), lambda call, args, kwargs: call(*args, y=40))
    listening.start()
    assert Counter().add(2) == 42
    listening.stop()
    listening = Interception(method_target(f'{__name__}.Counter.add'), lambda call, args, kwargs: None)
    listening.start()
    assert Counter().add(2) is None
    listening.stop()


def test_names_and_documentation_stay():
    original = Counter.add
    listening = Interception(method_target(f'{__name__}.Counter.add'), through)
    listening.start()
    assert Counter.add.__doc__ == 'Add two numbers.'
    assert unwrapped(Counter.add) is original
    listening.stop()
    assert Counter.add is original
    assert unwrapped(original) is original


def test_other_threads_are_not_heard_and_listen_for_themselves():
    heard = []

    def listen(name):
        def around(call, args, kwargs):
            heard.append(name)
            return call(*args, **kwargs)

        return Interception(function_target('math.floor'), around)

    mine, its = listen('main'), listen('thread')

    def work():
        its.start()
        math.floor(1.5)
        its.stop()

    mine.start()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == ['thread']
    math.floor(1.5)
    assert heard == ['thread', 'main']
    mine.stop()


def test_threads_that_come_and_go_leave_the_original():
    original = math.ceil
    errors = []

    def work():
        try:
            for _ in range(50):
                listening = Interception(function_target('math.ceil'), through)
                listening.start()
                assert math.ceil(1.5) == 2
                listening.stop()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert math.ceil is original


def test_errors_go_through():
    listening = Interception(method_target(f'{__name__}.Counter.add'), through)
    listening.start()
    with pytest.raises(TypeError):
        Counter().add()
    listening.stop()


def test_signatures_without_self():
    assert list(method_target(f'{__name__}.Counter.add').parameters().parameters) == ['x', 'y']
    assert function_target('torch.nn.functional.relu').parameters().parameters['inplace'].default is False
    assert function_target('torch.relu').parameters() is None
