"""The soak of tests/soak.py, for a minute."""
import pytest

from tests import soak


@pytest.mark.slow      # a minute by its purpose; `python -m tests.soak 30` takes longer
@pytest.mark.timeout(900)
def test_a_disturbed_training_ends_as_the_undisturbed_one_and_leaves_nothing(capsys):
    status = soak.main(["1"])
    assert status == 0, capsys.readouterr().out
