"""What runs on a CPU of the switch for speed gives the same numbers; the CUDA graphs of a GPU are not run here."""

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


def outputs_and_gradients(forward, net, *arguments):
    """Of the sum of the squared outputs: all gradients in one vector, so that those that are zero but for rounding do not count for themselves."""
    found = forward(*arguments)
    found = found[0] if isinstance(found, tuple) else found
    gradients = torch.autograd.grad(found.square().mean(), list(net.parameters()))
    return found.detach(), torch.cat([g.flatten() for g in gradients])


def assert_equal(ours, plain, limit):
    for a, b in zip(ours, plain):
        assert a.dtype == b.dtype and ((a - b).norm() / b.norm()).item() < limit


def problems():
    """(name, network, arguments of its forward pass)"""
    x, space = (
        torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
        SearchSpace(nodes=2),
    )
    x = x.contiguous(memory_format=torch.channels_last)
    net = DiscreteNetwork(random_genotype(SearchSpace(), 2), 10, 3, 4, 1).to(
        memory_format=torch.channels_last
    )
    yield "discrete", net, (x,)
    mix = mixing_weights(space, torch.randn(space.size, generator=torch.Generator().manual_seed(1)))
    yield "supernet", Supernet(space, 10, 3, 4, 1), (x, mix)


@pytest.mark.parametrize("name, net, arguments", list(problems()))
def test_a_traced_network_is_the_plain_one(name, net, arguments):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="acceleration is off")
        fast = outputs_and_gradients(accelerated(net, CPU, backend="aot_eager"), net, *arguments)
    assert_equal(fast, outputs_and_gradients(net, net, *arguments), 1e-5)


@pytest.mark.parametrize("name, net, arguments", list(problems()))
def test_bf16_is_near_float32(name, net, arguments):
    """Its numbers have 8 bits, so that BN and ReLU spread a relative error of 2^-8 a step."""
    with torch.autocast("cpu", torch.bfloat16):
        fast = outputs_and_gradients(lambda *a: net(*a).float(), net, *arguments)
    assert_equal(fast, outputs_and_gradients(net, net, *arguments), 0.1)


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="the compiler of torch.compile, g++, is not installed"
)
def test_compiled_retraining_is_the_plain_one():
    data = load_data("digits", train_images=64, val_images=50, test_images=50)
    genotype, settings = random_genotype(SearchSpace(), 2), RetrainSettings(
        epochs=1, batch_size=32, network=DiscreteSettings(channels=2, layers=1)
    )
    plain, _ = retrain(data, genotype, settings, 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="acceleration is off")
        fast, log = retrain(data, genotype, replace(settings, accelerate=True), 0)
    assert torch.isfinite(torch.tensor(log[0]["train_loss_nats"]))
    torch.testing.assert_close(
        predict(fast, data.val, data), predict(plain, data.val, data), atol=1e-3, rtol=0
    )


def test_the_switch_is_part_of_a_run_and_off_unless_asked_for():
    for name, profile in PROFILES.items():
        on = get_profile(name, accelerate="1")
        for part in ("darts", "hyper", "retrain"):
            assert "accelerate" not in describe_settings(getattr(profile, part))
            assert describe_settings(getattr(on, part))["accelerate"]
        assert (
            replace(on, darts=profile.darts, hyper=profile.hyper, retrain=profile.retrain)
            == profile
            == get_profile(name)
        )


def test_a_fault_of_the_network_is_not_hidden():
    _, net, (x,) = next(problems())
    with pytest.raises(RuntimeError, match="channels"):
        accelerated(net, CPU, backend="eager")(x[:, :2])


def test_a_copied_network_is_left_alone():
    """Compiling adds nothing to a network that is saved or copied later."""
    _, net, arguments = next(problems())
    names = list(net.state_dict())
    accelerated(net, CPU, backend="aot_eager")(*arguments)
    assert list(net.state_dict()) == names and list(copy.deepcopy(net).state_dict()) == names
