"""Whatever an artist can see is explained: tooltips, locale entries, help pages, example workflows."""

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
UI_ONLY = {"Note", "MarkdownNote", "PrimitiveNode", "Reroute"}
VUE_I18N_SYNTAX = set("{}@|$")


@pytest.fixture(scope="module")
def schemas(node_classes: dict[str, type]) -> dict[str, Any]:
    return {name: node.GET_SCHEMA() for name, node in node_classes.items()}


@pytest.fixture(scope="module")
def locale() -> dict[str, Any]:
    return json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))


def test_every_input_and_output_has_a_tooltip(schemas: dict[str, Any]):
    bare = [
        f"{name}.{one.id or one.display_name}"
        for name, schema in schemas.items()
        for one in [*schema.inputs, *schema.outputs]
        if not one.tooltip
    ]
    assert bare == []


def test_every_node_has_a_help_page(schemas: dict[str, Any]):
    pages = {path.parent.name for path in (ROOT / "js" / "docs").glob("*/en.md")}
    assert pages == set(schemas)


def test_help_pages_name_every_input(schemas: dict[str, Any]):
    for name, schema in schemas.items():
        page = (ROOT / "js" / "docs" / name / "en.md").read_text(encoding="utf-8")
        assert [one.id for one in schema.inputs if one.id not in page] == [], name


def test_locale_covers_every_node_input_and_output(schemas: dict[str, Any], locale: dict[str, Any]):
    assert set(locale) == set(schemas)
    for name, schema in schemas.items():
        entry = locale[name]
        assert entry["display_name"] == schema.display_name
        assert entry["description"]
        assert set(entry.get("inputs", {})) == {one.id for one in schema.inputs}, name
        assert set(entry["outputs"]) == {str(index) for index in range(len(schema.outputs))}, name
        parts = [*entry.get("inputs", {}).values(), *entry["outputs"].values()]
        assert all(part["name"] and part["tooltip"] for part in parts), name


def unescaped(text: str) -> str:
    """The text without its literals: {'@'} is how vue-i18n writes an @."""
    for character in VUE_I18N_SYNTAX:
        text = text.replace("{'" + character + "'}", "")
    return text


def test_locale_texts_hold_no_syntax_of_the_translator(locale: dict[str, Any]):
    def texts(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for part in value.values() for text in texts(part)]
        return [value]

    assert [text for text in texts(locale) if VUE_I18N_SYNTAX & set(unescaped(text))] == []


def test_there_are_example_workflows():
    assert WORKFLOWS


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def declared_inputs(info: dict[str, Any]) -> dict[str, list[Any]]:
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def widget_count(info: dict[str, Any]) -> int:
    """Number of values the page saves for a node: one per widget, and one more beside some."""
    count = 0
    for name, (kind, *rest) in declared_inputs(info).items():
        options = rest[0] if rest else {}
        if options.get("forceInput") or not (isinstance(kind, list) or kind in WIDGET_TYPES):
            continue
        after = options.get("control_after_generate", name in ("seed", "noise_seed"))
        uploads = options.get("image_upload") or options.get("upload")
        count += 1 + bool(after and kind == "INT") + bool(uploads)
    return count


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_has_a_thumbnail_and_a_note(path: Path):
    """Its own picture, unless it needs weights that do not come with the pack; its note names them."""
    workflow = load(path)
    notes = [n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MarkdownNote"]
    assert notes or any(node["type"] == "Note" for node in workflow["nodes"])
    needed = workflow["extra"].get("needs_weights")
    if needed is None:
        assert path.with_suffix(".jpg").read_bytes()[:3] == b"\xff\xd8\xff"
    else:
        assert [file for file in needed if not any(file in note for note in notes)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_uses_what_exists(path: Path, comfy_client):
    object_info = comfy_client.get("/object_info")
    for node in load(path)["nodes"]:
        if node["type"] in UI_ONLY:
            continue
        assert node["type"] in object_info
        info = object_info[node["type"]]
        named = {slot["name"] for slot in node.get("inputs", [])}
        assert named <= declared_inputs(info).keys(), node["type"]
        assert len(node.get("outputs", [])) <= len(info["output"]), node["type"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_saves_one_value_per_widget(path: Path, comfy_client):
    object_info = comfy_client.get("/object_info")
    for node in load(path)["nodes"]:
        if node["type"] in UI_ONLY:
            continue
        values, wanted = node.get("widgets_values", []), widget_count(object_info[node["type"]])
        exact = node["type"].startswith("Veduta")  # some stock nodes also save what they show
        assert len(values) == wanted if exact else len(values) >= wanted, node["type"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_nodes_name_their_pack(path: Path):
    for node in load(path)["nodes"]:
        if node["type"] in UI_ONLY:
            continue
        pack = "veduta" if node["type"].startswith("Veduta") else "comfy-core"
        assert node["properties"]["cnr_id"] == pack
        assert node["properties"]["Node name for S&R"] == node["type"]
        assert node["properties"]["ver"]
