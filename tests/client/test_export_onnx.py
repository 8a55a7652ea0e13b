"""The ONNX model scores as the policy does, for every state encoder, and with a device's own weights."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from bundle_world import PINNED, bundle
from fedrec.client import export_onnx as exporting
from fedrec.client import onnx_encoders
from fedrec.client.bundle import load_bundle
from fedrec.client.export_onnx import TOLERANCE, checked_export, export_onnx, largest_difference, served_names
from fedrec.errors import BundleError
from policy_world import ENCODERS, parameters, policy

TERMS = {
    "all terms": {
        "fast": ("taste", "gain", "latent", "temperature", "affinity"),
        "user_features": True,
        "affinity": True,
        "history_prior": 2.0,
        "bias_scale": 3.0,
    },
    "kernels of released parameters": {
        "affinity": True,
        "affinity_level": True,
        "affinity_place": 2,
        "pairs": 3,
        "frozen": ("bias",),
        "history_rewards": False,
    },
    "no content": {"content": False, "content_embedding": False, "fast": ("gain",)},
    "no ids": {"ids": False, "bias": False, "fast": ("taste", "latent")},
}


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("state", ENCODERS)
def test_onnxruntime_and_pytorch_agree(state, terms):
    settings = TERMS[terms]
    chosen = policy(state=state, **settings)
    point = parameters(chosen, scale=0.5)
    content = export_onnx(chosen, point, {})
    assert largest_difference(content, chosen, point) < TOLERANCE
    moved = {name: value + 0.01 * (name in chosen.released) for name, value in point.items()}
    assert largest_difference(content, chosen, moved) > TOLERANCE  # the comparison does see the parameters


def test_an_operator_that_is_wrong_is_found(monkeypatch):
    chosen = policy(state="transformer")
    point = parameters(chosen)
    monkeypatch.setattr(onnx_encoders, "_gelu", lambda graph, values: graph.op("Relu", values))
    assert largest_difference(export_onnx(chosen, point, {}), chosen, point) > TOLERANCE


def test_a_model_tells_what_it_is_and_takes_a_devices_own_weights():
    content, off = checked_export(load_bundle(bundle(4), PINNED))
    assert off < TOLERANCE
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["history", "levels"]
    assert [one.name for one in session.get_overridable_initializers()] == ["taste"]
    notes = session.get_modelmeta().custom_metadata_map
    assert (notes["version"], notes["history_length"]) == ("4", "6")
    assert json.loads(notes["item_ids"]) == [str(item) for item in range(11)]
    assert {one.domain for one in onnx.load_from_string(content).opset_import} == {""}
    fed = {"history": np.full((2, 6), -1), "levels": np.zeros((2, 6), np.int64)}
    plain, own = (session.run(None, {**fed, **more})[0] for more in ({}, {"taste": np.ones(7, np.float32)}))
    assert plain.shape == (2, 11)
    assert not np.allclose(plain, own)


def test_what_a_device_adapts_for_itself_can_be_fed():
    assert served_names(policy(state="personal", fast=("taste", "gain"))) == ("gain", "personal", "taste")


def test_a_model_that_differs_is_not_given_out(monkeypatch):
    monkeypatch.setattr(exporting, "largest_difference", lambda *arguments: float("nan"))
    with pytest.raises(BundleError, match=r"within 0\.0001 of PyTorch's, got a difference of nan"):
        checked_export(load_bundle(bundle(), PINNED))


def test_without_the_extra_it_is_a_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(BundleError, match=r"install fedrec\[export\]"):
        export_onnx(policy(), parameters(policy()), {})
    assert torch.is_grad_enabled()
