"""The public surface may only grow: ids, inputs in order, types, defaults, options, outputs.

After adding something public: `python dev.py test tests/comfy/test_surface.py --update-surface`.
"""

import json
from pathlib import Path
from typing import Any

import pytest

SURFACE = Path(__file__).resolve().parents[1] / "data" / "surface.json"

Surface = dict[str, dict[str, list[dict[str, Any]]]]


def describe_input(one: Any) -> dict[str, Any]:
    described = {"id": one.id, "type": one.get_io_type(), "optional": bool(one.optional)}
    if getattr(one, "default", None) is not None:
        described["default"] = one.default
    if getattr(one, "options", None) is not None:
        described["options"] = list(one.options)
    return described


def describe(node_class: Any) -> dict[str, list[dict[str, Any]]]:
    schema = node_class.GET_SCHEMA()
    outputs = [{"type": one.get_io_type(), "name": one.display_name} for one in schema.outputs]
    return {"inputs": [describe_input(one) for one in schema.inputs], "outputs": outputs}


def breaks(old: Surface, new: Surface) -> list[str]:
    """What of `old` a saved workflow would miss in `new`, as sentences."""
    found = [f"{node} vanished" for node in old if node not in new]
    for node in old.keys() & new.keys():
        found += [f"{node}: {text}" for text in _broken_inputs(old[node], new[node])]
        outputs = new[node]["outputs"][: len(old[node]["outputs"])]
        if outputs != old[node]["outputs"]:
            found.append(f"{node}: outputs were {old[node]['outputs']}, are {outputs}")
    return found


def _broken_inputs(old: dict[str, list], new: dict[str, list]) -> list[str]:
    kept, added = new["inputs"][: len(old["inputs"])], new["inputs"][len(old["inputs"]) :]
    if [one["id"] for one in kept] != [one["id"] for one in old["inputs"]]:
        return [f"inputs must begin with {[one['id'] for one in old['inputs']]} in this order"]
    found = [
        f"added input {one['id']} needs a default, or to be optional"
        for one in added
        if "default" not in one and not one["optional"]
    ]
    for before, after in zip(old["inputs"], kept, strict=True):
        lost = [
            option for option in before.get("options", []) if option not in after.get("options", [])
        ]
        if lost:
            found.append(f"{before['id']} lost the options {lost}")
        facts = ("type", "default", "optional")
        found += [
            f"{before['id']}: {fact} was {before.get(fact)!r}, is {after.get(fact)!r}"
            for fact in facts
            if before.get(fact) != after.get(fact)
        ]
    return found


@pytest.fixture(scope="module")
def current(node_classes: dict[str, type]) -> Surface:
    return json.loads(json.dumps({name: describe(node) for name, node in node_classes.items()}))


@pytest.fixture(scope="module")
def stored() -> Surface:
    return json.loads(SURFACE.read_text(encoding="utf-8")) if SURFACE.is_file() else {}


def test_nothing_public_changed_or_vanished(stored: Surface, current: Surface):
    assert breaks(stored, current) == []


def test_the_snapshot_holds_everything_public(
    stored: Surface, current: Surface, request: pytest.FixtureRequest
):
    if request.config.getoption("--update-surface") and not breaks(stored, current):
        SURFACE.parent.mkdir(exist_ok=True)
        SURFACE.write_text(json.dumps(current, indent=1) + "\n", encoding="utf-8")
        stored = current
    assert stored == current, "something public is new: run this file with --update-surface"


@pytest.fixture
def small() -> Surface:
    inputs = [
        {"id": "image", "type": "IMAGE", "optional": False},
        {"id": "mode", "type": "COMBO", "optional": False, "default": "a", "options": ["a", "b"]},
    ]
    return {"VedutaOne": {"inputs": inputs, "outputs": [{"type": "MASK", "name": "mask"}]}}


def test_growth_breaks_nothing(small: Surface):
    grown = json.loads(json.dumps(small)) | {"VedutaTwo": {"inputs": [], "outputs": []}}
    node = grown["VedutaOne"]
    node["inputs"][1]["options"].append("c")
    node["inputs"].append({"id": "seed", "type": "INT", "optional": False, "default": 0})
    node["outputs"].append({"type": "IMAGE", "name": "image"})
    assert breaks(small, grown) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("VedutaOne"), "vanished"),
        (lambda s: s["VedutaOne"]["inputs"].reverse(), "in this order"),
        (lambda s: s["VedutaOne"]["inputs"].pop(), "in this order"),
        (lambda s: s["VedutaOne"]["inputs"][1].update(default="b"), "default was 'a', is 'b'"),
        (lambda s: s["VedutaOne"]["inputs"][1].update(options=["a"]), "lost the options"),
        (lambda s: s["VedutaOne"]["outputs"][0].update(type="IMAGE"), "outputs were"),
        (
            lambda s: s["VedutaOne"]["inputs"].append(
                {"id": "x", "type": "INT", "optional": False}
            ),
            "added input x needs a default",
        ),
    ],
)
def test_a_breaking_change_is_told(small: Surface, change, told: str):
    changed = json.loads(json.dumps(small))
    change(changed)
    assert any(told in sentence for sentence in breaks(small, changed))
