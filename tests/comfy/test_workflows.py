"""Every example workflow runs on a real ComfyUI, over HTTP and websocket; trainings are cut short."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ALL = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))
MOST_TRAINING_STEPS = 20
# those that need the artist's own weights say so, and are only looked at (`test_docs.py`)
WORKFLOWS = [path for path in ALL if "needs_weights" not in json.loads(path.read_text())["extra"]]


def shorten_training(prompt: dict) -> None:
    """What takes minutes on a CPU; the demo trains in full."""
    for node in prompt.values():
        if node["class_type"].startswith("VedutaTrain"):
            node["inputs"]["steps"] = min(node["inputs"]["steps"], MOST_TRAINING_STEPS)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_makes_pictures(path: Path, comfy_client):
    prompt = comfy_client.prompt_of(json.loads(path.read_text(encoding="utf-8")))
    shorten_training(prompt)
    steps = []
    pictures = comfy_client.pictures(comfy_client.run(prompt, steps.append))
    assert pictures
    assert {step.node_id for step in steps} <= set(prompt)
    for picture in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(picture.data)).convert("RGB"), dtype=float)
        assert min(pixels.shape[:2]) >= 64
        assert pixels.std() > 5, f"{picture.filename} of node {picture.node_id} is flat"


def test_a_saved_picture_carries_its_workflow(comfy_client):
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "kept"}},
    }  # fmt: skip
    (picture,) = comfy_client.pictures(comfy_client.run(prompt))
    assert json.loads(Image.open(io.BytesIO(picture.data)).info["prompt"]) == prompt


def test_a_refused_prompt_is_told_in_comfyuis_words(comfy_client):
    from veduta.tools.comfy_client import PromptError

    prompt = {"1": {"class_type": "VedutaNothing", "inputs": {}}}
    with pytest.raises(PromptError, match="VedutaNothing"):
        comfy_client.queue(prompt)


def test_an_unknown_node_of_a_workflow_is_named(comfy_client):
    from veduta.tools.comfy_client import PromptError

    workflow = {"nodes": [{"id": 1, "type": "VedutaNothing"}], "links": []}
    with pytest.raises(PromptError, match="no node VedutaNothing; did the pack load"):
        comfy_client.prompt_of(workflow)


def test_the_server_says_nothing_bad_about_the_pack(comfy_server):
    lines = comfy_server.log_text().splitlines()
    assert [line for line in lines if "IMPORT FAILED" in line or "Cannot import" in line] == []
