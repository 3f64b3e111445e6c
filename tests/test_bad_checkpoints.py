"""Bad checkpoints, predictions and weights: each is refused, or passed over with a warning."""

import json
import os
import pickle
import shutil
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import JSON, Refusals, changed, check_one_line, examples, in_time
from small_inputs import Harm, trained_parts

from edgenes.core import EdgenesError, write_atomic
from edgenes.study.records import (
    Records,
    load_predictions,
    load_weights,
    save_predictions,
    save_weights,
)
from edgenes.training import DiskCheckpoint, digest, pack, restore

TRIED = Refusals(checkpoint=150)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("bad")


def header_length(content):
    """How many bytes of a safetensors file stand before its numbers."""
    return 8 + int.from_bytes(content[:8], "little")


def with_flipped_bit(content, place):
    """The content of a file in which one bit of one byte is another."""
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


# ---------------------------------------------------------------- checkpoints


def try_to_resume(folder):
    """Loads a checkpoint and trains on with it, where it is taken.

    An `EdgenesError` or a warning counts as a refusal; after a warning nothing is taken.
    """
    parts, _ = trained_parts(1)
    with warnings.catch_warnings(record=True) as caught, in_time():
        warnings.simplefilter("always")
        try:
            log = restore(DiskCheckpoint(folder), parts, 2)
        except EdgenesError as error:
            check_one_line(str(error))
            TRIED.counts["checkpoint"] += 1
            return
    if caught:
        TRIED.counts["checkpoint"] += 1
        assert log == []
    for name in ("weight_optimiser", "structure_optimiser"):
        parts[name].step()


def refuse_each(path, contents):
    """Writes one content after the other into the file of a checkpoint: all are refused."""
    before = TRIED.counts["checkpoint"]
    for content in contents:
        path.write_bytes(content)
        try_to_resume(path.parent)
    assert TRIED.counts["checkpoint"] - before == len(contents), "a bad checkpoint was taken"


def other_tensors(dtype):
    """Tensors of this type in all small shapes."""
    shapes = st.lists(st.integers(0, 4), max_size=3)
    return shapes.map(lambda shape: torch.zeros(shape, dtype=dtype))


DTYPES = (torch.float32, torch.int8, torch.bool, torch.float64)
TENSORS = st.sampled_from(DTYPES).flatmap(other_tensors)


@examples(160)
@given(st.data())
def test_checkpoints(place, data):
    folder = place / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    tensors = {}
    nest = pack(trained_parts()[1], tensors)
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(tensors)))
        tensors[name] = data.draw(TENSORS)
        if data.draw(st.integers(0, 4)) == 0:
            del tensors[name]
    else:
        nest = data.draw(changed(nest) | JSON)
    text = json.dumps(nest)
    fits = data.draw(st.integers(0, 9)) > 0
    metadata = {"state": text, "digest": digest(text, tensors) if fits else "0"}
    content = safetensors.torch.save(tensors, metadata=metadata)
    write_atomic(folder / "epoch-00002.safetensors", content)
    try_to_resume(folder)


@pytest.fixture
def checkpoint_file(tmp_path):
    """The file of a sound checkpoint."""
    checkpoint = DiskCheckpoint(tmp_path)
    checkpoint.save(trained_parts()[1])
    (path,) = checkpoint.files()
    return path


def test_checkpoints_that_are_cut_or_have_no_header(checkpoint_file):
    content = checkpoint_file.read_bytes()
    cut = [content[:length] for length in range(0, len(content), 61)]
    without_header = [
        b"\xff" * 8 + content[8:],
        b"[" * 10**5,
        content[:8] + b"{" * (len(content) - 8),
    ]
    refuse_each(checkpoint_file, cut + without_header)


def test_numbers_that_were_changed_on_the_disk(checkpoint_file):
    content = checkpoint_file.read_bytes()
    start = header_length(content)
    # A file of the right length whose end never reached the disk.
    torn = content[: start + (len(content) - start) * 2 // 3].ljust(len(content), b"\0")
    flipped = [with_flipped_bit(content, place) for place in range(start, len(content), 7)]
    refuse_each(checkpoint_file, [torn, *flipped])


def test_more_epochs_than_were_asked_for(checkpoint_file):
    checkpoint = DiskCheckpoint(checkpoint_file.parent)
    TRIED.refused("checkpoint", restore, checkpoint, trained_parts(1)[0], 1)


@pytest.mark.parametrize(
    "text",
    ["[" * 10**5, '{"list": [' * 5000, '{"tensor": "nowhere"}', '{"dict": 3}', "7", "[]"],
    ids=lambda text: text[:12],
)
def test_states_that_are_no_nest(text, tmp_path):
    metadata = {"state": text, "digest": digest(text, {})}
    content = safetensors.torch.save({}, metadata=metadata)
    refuse_each(tmp_path / "epoch-00001.safetensors", [content])


def test_a_pipe_beside_a_damaged_checkpoint(tmp_path):
    metadata = {"state": "[]", "digest": digest("[]", {})}
    content = safetensors.torch.save({}, metadata=metadata)
    write_atomic(tmp_path / "epoch-00001.safetensors", content)
    os.mkfifo(tmp_path / "epoch-00002.safetensors")  # nobody writes
    with in_time(), pytest.warns(match="is damaged"):
        assert DiskCheckpoint(tmp_path).load() is None


def test_a_pickle_for_a_checkpoint_is_not_run(tmp_path):
    harm = pickle.dumps(Harm(tmp_path / "harm"))
    (tmp_path / "epoch-00001.safetensors").write_bytes(harm)
    with pytest.warns(match="is damaged"):
        assert DiskCheckpoint(tmp_path).load() is None
    assert not (tmp_path / "harm").exists()


def test_a_sound_checkpoint_goes_on_with_its_own_steps(tmp_path):
    """The settings say how large a step is, not the file."""
    parts, state = trained_parts()
    state["weight_optimiser"]["param_groups"][0]["lr"] = "rm -rf"
    DiskCheckpoint(tmp_path).save(state)
    new_parts, _ = trained_parts(1)
    assert len(restore(DiskCheckpoint(tmp_path), new_parts, 2)) == 2
    assert torch.equal(new_parts["net"].weight, parts["net"].weight)
    assert new_parts["weight_optimiser"].param_groups[0]["lr"] == 0.1


# ---------------------------------------------------------------- caches


def test_predictions_are_a_cache(tmp_path):
    """What is damaged, or belongs to another run, is none; it is made again."""
    records = Records(tmp_path)
    probs = np.full((4, 2), 0.5)
    save_predictions(records, "k", val=probs, test=probs)
    path = tmp_path / "cache" / "k.npz"
    content = path.read_bytes()
    assert load_predictions(records, "k")["val"].shape == (4, 2)
    for arrays in (
        {"val": probs},
        {"val": probs, "test": probs},
        {"val": np.array([{}]), "test": np.float16(probs)},
        {"val": np.zeros(3, "f2"), "test": np.float16(probs)},
    ):
        np.savez(path, **arrays)
        assert load_predictions(records, "k") is None
    for spoiled in (
        content[:-30],
        b"",
        pickle.dumps(Harm(tmp_path / "harm")),
        content.replace(b"\x93NUMPY", b"\x93NUMBY"),
    ):
        path.write_bytes(spoiled)
        assert load_predictions(records, "k") is None
    assert not (tmp_path / "harm").exists()


def test_predictions_of_another_run(tmp_path):
    records = Records(tmp_path)
    probs = np.full((4, 2), 0.5)
    save_predictions(records, "other", val=probs, test=probs)
    content = (tmp_path / "cache" / "other.npz").read_bytes()
    (tmp_path / "cache" / "k.npz").write_bytes(content)
    assert load_predictions(records, "k") is None
    assert load_predictions(records, "other")


def test_weights_are_a_cache(tmp_path):
    """What is damaged, or belongs to another run, is not loaded."""
    records = Records(tmp_path)
    net = torch.nn.Linear(3, 2)
    other = torch.nn.Linear(3, 2)
    save_weights(records, "k", net)
    path = tmp_path / "cache" / "k.safetensors"
    content = path.read_bytes()
    assert load_weights(records, "k", other)
    assert torch.equal(other.weight, net.weight)
    start = header_length(content)
    weights = net.state_dict()
    of_another_run = {"digest": digest("other", weights)}
    for spoiled in (
        *(with_flipped_bit(content, place) for place in range(start, len(content))),
        content[:start].ljust(len(content), b"\0"),
        content[:-1],
        b"",
        b"\xff" * 99,
        safetensors.torch.save(weights),
        safetensors.torch.save(weights, metadata=of_another_run),
    ):
        path.write_bytes(spoiled)
        assert not load_weights(records, "k", other)


def test_weights_that_are_a_pipe(tmp_path):
    os.makedirs(tmp_path / "cache")
    os.mkfifo(tmp_path / "cache" / "k.safetensors")  # nobody writes
    with in_time():
        assert not load_weights(Records(tmp_path), "k", torch.nn.Linear(3, 2))


def test_enough_was_tried(request, place):
    assert not list(place.rglob("*.tmp"))
    TRIED.check_counts(request)
