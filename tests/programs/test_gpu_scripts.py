"""What is prepared for a GPU runs to its end on a CPU, in a reduced form."""
import pytest

from tests.support.run_program import program


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_on_a_cpu():
    done = program("-m", "benchmarks.gpu", "--device", "cpu", "--quick", timeout=280)
    assert done.returncode == 0, done.stderr
    for heading in ("one training step", "kernels that take longest", "waits for data",
                    "rankdice masks", "prediction of", "images/s of the loader"):
        assert heading in done.stdout, heading


# On a CPU the tests of one network show that they run. What they compare is tested elsewhere.
SELECTED = {"components": "not test_a_network_has or ENet", "inference": "",
            "training": "not (DeepLab or PSPNet or HRNetOCR or UNet)"}


@pytest.mark.slow       # a minute
@pytest.mark.timeout(600)
@pytest.mark.parametrize("file", SELECTED)
def test_the_tests_of_a_gpu_pass_on_a_cpu(file):
    done = program("-m", "pytest", "-m", "gpu", "--device", "cpu", "-n", "0",
                   f"tests/gpu/test_{file}.py", "-k", SELECTED[file], timeout=500)
    assert done.returncode == 0, done.stdout[-3000:]
