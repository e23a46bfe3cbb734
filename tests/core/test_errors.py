"""Messages of errors."""

from dynamicid_core.errors import InputError


def test_a_message_that_quotes_too_much_keeps_its_beginning_and_its_end():
    message = str(InputError(f"The name is wrong: {'x' * 10**6}. Choose another one."))
    assert message.startswith("The name is wrong: xx")
    assert message.endswith("xx. Choose another one.")
    assert len(message) < 2100


def test_an_ordinary_message_stays_as_it_is():
    assert str(InputError("x" * 2000)) == "x" * 2000
