"""A small client of a running ComfyUI: queue a prompt, follow it, fetch what it made."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import websocket

Prompt = dict[str, dict[str, Any]]  # ComfyUI's API format: node id -> class_type, inputs
UI_ONLY_TYPES = frozenset({"Note", "MarkdownNote", "PrimitiveNode", "Reroute"})


class PromptError(Exception):
    """ComfyUI refused or failed a prompt; the text is its own sentence."""


@dataclass(frozen=True)
class Progress:
    """One step forward: `step` of `steps` inside the node `node_id`."""

    node_id: str
    step: int
    steps: int


@dataclass(frozen=True)
class Picture:
    """A picture that a node showed or saved; `kind` is "output" or "temp"."""

    node_id: str
    filename: str
    kind: str
    data: bytes


class ComfyClient:
    """Talks to one ComfyUI over HTTP and a websocket; use it in a `with` block.

    Args:
        address: host:port.
    """

    def __init__(self, address: str) -> None:
        self._http = f"http://{address}"
        self._client_id = uuid.uuid4().hex
        self._socket_url = f"ws://{address}/ws?clientId={self._client_id}"

    def __enter__(self) -> "ComfyClient":
        self._socket = websocket.create_connection(self._socket_url, timeout=30)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def get(self, path: str) -> Any:
        """JSON answer of a GET request."""
        with urllib.request.urlopen(self._http + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """JSON answer of a POST request, None if it has no body; PromptError if ComfyUI refuses."""
        request = urllib.request.Request(
            self._http + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise PromptError(_refusal(error.read())) from error
        return json.loads(text) if text else None

    def queue(self, prompt: Prompt, extra_data: dict[str, Any] | None = None) -> str:
        """Hand in a prompt; its id comes back at once.

        Raises:
            PromptError: ComfyUI refuses it, or a part of it.
        """
        body = {"prompt": prompt, "client_id": self._client_id, "extra_data": extra_data or {}}
        answer = self.post("/prompt", body)
        if answer["node_errors"]:
            raise PromptError(_node_sentences(answer["node_errors"]))
        return answer["prompt_id"]

    def wait(
        self,
        prompt_id: str,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        timeout_s: float = 600,
    ) -> None:
        """Follow a queued prompt to its end.

        Raises:
            PromptError: a node failed, it was interrupted, or time is up.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise PromptError(f"the prompt was not finished after {timeout_s:.0f} s")
            kind, data = self._receive(left_s)
            if data.get("prompt_id") != prompt_id:
                continue
            if kind == "execution_error":
                raise PromptError(f"{data['node_type']}: {data['exception_message'].strip()}")
            if kind == "execution_interrupted":
                raise PromptError("the prompt was interrupted")
            if kind == "executing":
                if data.get("node") is None:  # comes after the history has been written
                    return
                on_progress(Progress(str(data["node"]), 0, 1))
            if kind == "progress":
                on_progress(Progress(str(data["node"]), int(data["value"]), int(data["max"])))

    def _receive(self, timeout_s: float) -> tuple[str, dict[str, Any]]:
        self._socket.settimeout(timeout_s)
        try:
            message = self._socket.recv()
        except websocket.WebSocketTimeoutException:
            return "", {}
        if not isinstance(message, str):  # previews are binary
            return "", {}
        if not message:
            raise PromptError("ComfyUI closed the connection; its log says why")
        event = json.loads(message)
        return event["type"], event.get("data") or {}

    def run(
        self,
        prompt: Prompt,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        timeout_s: float = 600,
    ) -> dict[str, dict[str, Any]]:
        """Queue a prompt, wait for it, and return what its nodes showed: node id -> ui entries."""
        prompt_id = self.queue(prompt)
        self.wait(prompt_id, on_progress, timeout_s)
        return self.outputs(prompt_id)

    def outputs(self, prompt_id: str) -> dict[str, dict[str, Any]]:
        """What the nodes of a finished prompt showed: node id -> ui entries."""
        return self.get(f"/history/{prompt_id}")[prompt_id]["outputs"]

    def pictures(self, outputs: dict[str, dict[str, Any]]) -> list[Picture]:
        """Fetch every picture of `outputs`, in the order of its nodes and batches."""
        return [
            Picture(node_id, entry["filename"], entry["type"], self._view(entry))
            for node_id, shown in outputs.items()
            for entry in shown.get("images", [])
        ]

    def _view(self, entry: dict[str, str]) -> bytes:
        query = urllib.parse.urlencode({k: entry[k] for k in ("filename", "subfolder", "type")})
        with urllib.request.urlopen(f"{self._http}/view?{query}", timeout=60) as answer:
            return answer.read()

    def interrupt(self, prompt_id: str) -> None:
        """Ask ComfyUI to stop a running prompt."""
        self.post("/interrupt", {"prompt_id": prompt_id})

    def prompt_of(self, workflow: dict[str, Any]) -> Prompt:
        """Turn a workflow as the page saves it into the prompt that the page would send.

        Raises:
            PromptError: it uses a node that this ComfyUI does not have.
        """
        from comfy_cli.workflow_to_api import convert_ui_to_api  # slow to import

        object_info = self.get("/object_info")
        types = {node["type"] for node in workflow["nodes"]} - UI_ONLY_TYPES
        if unknown := sorted(types - object_info.keys() - _subgraph_ids(workflow)):
            raise PromptError(f"this ComfyUI has no node {', '.join(unknown)}; did the pack load?")
        return convert_ui_to_api(workflow, object_info)


def _subgraph_ids(workflow: dict[str, Any]) -> set[str]:
    return {graph["id"] for graph in workflow.get("definitions", {}).get("subgraphs", [])}


def _refusal(body: bytes) -> str:
    try:
        answer = json.loads(body)
        nodes = _node_sentences(answer.get("node_errors") or {})
        return nodes or f"{answer['error']['message']} {answer['error'].get('details', '')}".strip()
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")


def _node_sentences(node_errors: dict[str, Any]) -> str:
    return "; ".join(
        f"{node['class_type']}: {error['message']} ({error['details']})"
        for node in node_errors.values()
        for error in node["errors"]
    )
