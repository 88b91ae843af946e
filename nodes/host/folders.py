"""Model folders of our own kinds beside ComfyUI's."""

import os

import folder_paths


def register_folder(name: str, extensions: set[str]) -> None:
    """Let ComfyUI list files of a kind under models/<name>; folders the user gave it stay.

    Without `extensions` ComfyUI would list every file there.
    """
    folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
    paths, before = folder_paths.folder_names_and_paths[name]
    folder_paths.folder_names_and_paths[name] = (paths, {*before, *extensions})
