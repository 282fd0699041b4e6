"""Errors cross the borders of processes: workers send them to the search."""

import inspect
import pickle

import pytest

from qnas_plugin import errors
from qnas_plugin.errors import QnasError, UnknownNameError

PLAIN = [
    error
    for _, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, QnasError) and error is not UnknownNameError
]


@pytest.mark.parametrize(
    "error",
    [*(error("what is wrong") for error in PLAIN), UnknownNameError("supernet", "brt", ["vit", "bert"])],
    ids=repr,
)
def test_errors_keep_type_message_and_attributes_when_sent(error: QnasError) -> None:
    received = pickle.loads(pickle.dumps(error))
    assert type(received) is type(error)
    assert str(received) == str(error)
    assert vars(received) == vars(error)
