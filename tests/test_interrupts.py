import signal

import pytest

from transformer_jax.trainer import interrupts
from transformer_jax.trainer.interrupts import StopError, StopSignals


def test_a_signal_is_noted_and_nothing_is_interrupted():
    with StopSignals() as signals:
        assert signals.received is None
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_can_be_done_over(number):
    signals = StopSignals()
    with signals, pytest.raises(StopError) as caught, signals.at_once():
        signal.raise_signal(number)
    assert caught.value.number == number


def test_a_signal_that_came_before_ends_it_too():
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(StopError), signals.at_once():
            pytest.fail("the block was entered")


def test_one_of_several_processes_is_never_interrupted():
    with StopSignals(alone=False) as signals:
        with signals.at_once():
            signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT


def test_another_signal_ends_the_program_and_an_echo_does_not(monkeypatch):
    now = 5.0
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: now)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        now += interrupts.ECHO_SECONDS / 2
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(SystemExit) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.code == 143
        now += interrupts.ECHO_SECONDS
        with pytest.raises(SystemExit) as caught:
            signal.raise_signal(signal.SIGINT)
        assert caught.value.code == 130


def test_the_handlers_of_before_come_back():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
