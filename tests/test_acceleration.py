"""The switch for speed gives the same numbers, as far as a CPU can run it.

The CUDA graphs of a GPU are not run here.
"""

import copy
import shutil
import warnings
from dataclasses import replace

import pytest
import torch

from edgenes.device import accelerated
from edgenes.discrete import DiscreteNetwork
from edgenes.genotype import SearchSpace
from edgenes.neighbours import random_genotype
from edgenes.readers import load_data
from edgenes.relaxation import mixing_weights
from edgenes.retraining import DiscreteSettings, RetrainSettings, predict, retrain
from edgenes.study.profiles import PROFILES, get_profile
from edgenes.supernet import Supernet
from edgenes.training import describe_settings

CPU = torch.device("cpu")
ACCELERATED_PARTS = ("darts", "hypernetwork", "retrain")  # of a budget


def random_images():
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last)


def discrete_network():
    genotype = random_genotype(SearchSpace(), 2)
    network = DiscreteNetwork(genotype, 10, channels=4, layers=1)
    return network.to(memory_format=torch.channels_last)


def discrete_problem():
    """A discrete network, and the arguments of its forward pass."""
    return discrete_network(), (random_images(),)


def supernet_problem():
    """A supernet, and the arguments of its forward pass."""
    space = SearchSpace(nodes=2)
    vector = torch.randn(space.size, generator=torch.Generator().manual_seed(1))
    supernet = Supernet(space, 10, channels=4, layers=1)
    return supernet, (random_images(), mixing_weights(space, vector))


@pytest.fixture(params=[discrete_problem, supernet_problem], ids=["discrete", "supernet"])
def problem(request):
    return request.param()


def output_and_gradients(forward, network, arguments):
    """The output, and all gradients of the mean of its squares, joined into one vector.

    They are joined, since the gradient of one weight may be nothing but rounding, of which relative
    differences say nothing.
    """
    output = forward(*arguments)
    loss = output.square().mean()
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    return output.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def assert_close(ours, plain, limit):
    """The relative differences of outputs and of gradients, as norms, are below the limit."""
    for actual, expected in zip(ours, plain, strict=True):
        assert actual.dtype == expected.dtype
        assert ((actual - expected).norm() / expected.norm()).item() < limit


def test_a_traced_network_is_the_plain_one(problem):
    network, arguments = problem
    traced = accelerated(network, CPU, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="acceleration is off")
        fast = output_and_gradients(traced, network, arguments)
    assert_close(fast, output_and_gradients(network, network, arguments), 1e-5)


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="the compiler of torch.compile, g++, is not installed"
)
def test_compiled_retraining_is_the_plain_one():
    data = load_data("digits", train_images=64, val_images=50, test_images=50)
    genotype = random_genotype(SearchSpace(nodes=2), 2)  # few edges to compile
    network_settings = DiscreteSettings(channels=2, layers=1)
    settings = RetrainSettings(epochs=1, batch_size=32, network=network_settings)
    plain, _ = retrain(data, genotype, settings, 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="acceleration is off")
        fast, log = retrain(data, genotype, replace(settings, accelerate=True), 0)
    assert torch.isfinite(torch.tensor(log[0]["train_loss_nats"]))
    fast_probabilities = predict(fast, data.val, data)
    plain_probabilities = predict(plain, data.val, data)
    torch.testing.assert_close(fast_probabilities, plain_probabilities, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", PROFILES)
def test_the_switch_is_part_of_a_run_and_off_unless_asked_for(name):
    profile = PROFILES[name]
    accelerated_profile = get_profile(name, {"accelerate": "1"})
    switched_off = {}
    for part in ACCELERATED_PARTS:
        settings = getattr(accelerated_profile.budget, part)
        assert describe_settings(settings)["accelerate"] is True
        assert "accelerate" not in describe_settings(getattr(profile.budget, part))
        switched_off[part] = replace(settings, accelerate=False)
    budget = replace(accelerated_profile.budget, **switched_off)
    assert replace(accelerated_profile, budget=budget) == profile
    assert get_profile(name) == profile


def test_a_fault_of_the_network_is_not_hidden():
    forward = accelerated(discrete_network(), CPU, backend="eager")
    with pytest.raises(RuntimeError, match="channels"):
        forward(random_images()[:, :2])


def test_after_an_input_that_the_network_refuses_the_next_one_is_compiled():
    calls = []

    def counting_compiler(graph, inputs):
        def compiled(*arguments):
            calls.append(1)
            return graph(*arguments)

        return compiled

    network = torch.nn.Linear(4, 2)
    forward = accelerated(network, CPU, backend=counting_compiler)
    good = torch.ones(3, 4)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="acceleration is off")
        for count in (1, 2):
            assert torch.equal(forward(good), network(good))
            assert len(calls) == count
            with pytest.raises(RuntimeError, match="cannot be multiplied"):
                forward(torch.ones(3, 5))


def test_a_copied_network_is_left_alone():
    """Compiling adds nothing to a network that is saved or copied later."""
    network = discrete_network()
    names = list(network.state_dict())
    accelerated(network, CPU, backend="aot_eager")(random_images())
    assert list(network.state_dict()) == names
    assert list(copy.deepcopy(network).state_dict()) == names
