"""The real page in a real Chromium, with both node renderers: no error of ours, workflows run."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from veduta.tools.install import find_chromium

ROOT = Path(__file__).resolve().parents[2]
ALL = sorted((ROOT / "workflows").glob("*.json"))
# those that need the artist's own weights say so
WORKFLOWS = [path for path in ALL if "needs_weights" not in json.loads(path.read_text())["extra"]]
SCREENSHOTS = ROOT / "build" / "screenshots"
RENDERERS = {"canvas": False, "vue": True}  # values of the setting Comfy.VueNodes.Enabled
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PAGE_TIMEOUT_MS = 120_000
RUN_TIMEOUT_MS = 600_000

IS_READY = "() => window.app?.graph && window.app.extensionManager?.setting && LiteGraph.registered_node_types['VedutaAnchor']"
# the page is what is tested here; tests/comfy runs every workflow in its full length, the demo
# the trainings too
FEW_STEPS = """most => {
  for (const node of app.graph.nodes)
    for (const widget of node.widgets ?? [])
      if (widget.name === "steps") widget.value = Math.min(widget.value, most)
}"""
MOST_STEPS = 4
FIT = "() => app.extensionManager.command.execute('Comfy.Canvas.FitView')"
OPEN = "async ([graph, name]) => { await window.app.loadGraphData(graph, true, true, name) }"
WIDGETS = "() => app.graph.nodes.map(n => [n.type, (n.widgets ?? []).map(w => [w.name, w.value])])"
# Nodes that show or save pictures, and how many of them have one on the page.
SHOWN = """() => {
  const wanted = app.graph.nodes.filter(n => ["SaveImage", "PreviewImage"].includes(n.type))
  const shows = n => (app.nodeOutputs?.[n.id]?.images?.length ?? 0) > 0
  const drawn = n => n.imgs?.some(i => i.complete && i.naturalWidth > 0)
    || [...document.querySelectorAll(`[data-node-id="${n.id}"] img`)].some(i => i.naturalWidth > 0)
  return { wanted: wanted.length, shown: wanted.filter(n => shows(n) && drawn(n)).length }
}"""


@pytest.fixture(scope="module")
def browser(comfy_server) -> Iterator:
    executable = find_chromium()
    if not executable:
        pytest.skip("no Chromium or Chrome on this machine; install one to run the page tests")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=executable, args=FLAGS, ignore_default_args=["--headless"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, comfy_server) -> Iterator[Callable]:
    """Opens the page with a renderer; afterwards no error may have come from a file of ours."""
    from veduta.tools.comfy_client import ComfyClient

    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    context.set_default_timeout(PAGE_TIMEOUT_MS)
    errors: list[str] = []

    def open_with(renderer: str):
        settings = {"Comfy.VueNodes.Enabled": RENDERERS[renderer], "Comfy.TutorialCompleted": True}
        ComfyClient(comfy_server.address).post("/settings", settings)
        page = context.new_page()
        page.on("console", lambda m: m.type == "error" and errors.append(f"{m.text} {m.location}"))
        page.on("pageerror", lambda error: errors.append(f"{error} {error.stack}"))
        page.goto(f"http://{comfy_server.address}/")
        page.wait_for_function(IS_READY)
        page.wait_for_selector("#graph-canvas")
        return page

    yield open_with
    context.close()
    assert [error for error in errors if "veduta" in error.lower()] == []


def keep_screenshot(page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(SCREENSHOTS / f"{name}.png"))


@pytest.mark.parametrize("renderer", RENDERERS)
def test_page_loads_with_our_nodes(open_page, renderer: str):
    page = open_page(renderer)
    ours = page.evaluate("() => Object.keys(LiteGraph.registered_node_types)")
    assert {"VedutaAnchor", "VedutaMeasureComposition"} <= set(ours)
    page.evaluate(
        "() => { app.graph.clear(); app.graph.add(LiteGraph.createNode('VedutaAnchor')) }"
    )
    page.wait_for_timeout(1000)
    keep_screenshot(page, f"node_{renderer}")


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_opens_runs_and_shows_its_pictures(open_page, path: Path, renderer: str):
    page = open_page(renderer)
    graph = json.loads(path.read_text(encoding="utf-8"))
    page.evaluate(OPEN, [graph, path.stem])
    opened = page.evaluate(WIDGETS)
    assert sorted(kind for kind, _ in opened) == sorted(node["type"] for node in graph["nodes"])
    page.evaluate(FEW_STEPS, MOST_STEPS)
    page.evaluate(FIT)  # what lies outside of the view is not drawn
    page.locator("#graph-canvas").focus()
    page.keyboard.press("Control+Enter")  # queue, as a person does
    page.wait_for_function(
        f"() => {{ const s = ({SHOWN})(); return s.wanted > 0 && s.shown === s.wanted }}",
        timeout=RUN_TIMEOUT_MS,
    )
    page.evaluate(FIT)
    page.wait_for_timeout(1500)  # the view glides to its place
    keep_screenshot(page, f"{path.stem}_{renderer}")
