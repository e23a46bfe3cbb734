"""The pack's folders in ComfyUI's models/, and their files."""

import reprlib
from pathlib import Path

import folder_paths

from ..errors import InputError

MODELS, IP_ADAPTERS, FACE_ANALYSIS = "dynamicid", "ipadapter", "insightface"
FACES, KEYPOINTS = "dynamicid_faces", "dynamicid_keypoints"
_NOT_WEIGHTS = ("faces", "keypoints")  # subfolders of the folder of weights
NO_FILES = "(no files yet)"
"""Shown in place of an empty list, for which the interface would omit the input and the host give no reason."""
_FIRST_FILE_HINTS = {
    MODELS: "Put a DynamicID file there; the authors' are at https://huggingface.co/meteorite2023/DynamicID.",
    FACES: "Encode Face and Save Face make one.",
    KEYPOINTS: "Face Keypoints or Pose Keypoints, and Save Keypoints, make one.",
}


def register_model_folders() -> None:
    """Adds the pack's folders in models/, keeping what extra_model_paths.yaml or other packs have set for them."""
    models = Path(folder_paths.models_dir)
    weights = set(folder_paths.supported_pt_extensions)
    for name, folder, extensions in (
        (MODELS, models / "dynamicid", weights),
        (FACES, models / "dynamicid" / "faces", {".safetensors"}),
        (KEYPOINTS, models / "dynamicid" / "keypoints", {".safetensors"}),
        (IP_ADAPTERS, models / "ipadapter", weights),
        (FACE_ANALYSIS, models / "insightface", {".onnx"}),
    ):
        folders, known = folder_paths.folder_names_and_paths.get(name, ([], set()))
        if str(folder) not in folders:
            folders = [*folders, str(folder)]
        folder_paths.folder_names_and_paths[name] = (folders, set(known) | extensions)


def list_files(name: str) -> list[str]:
    """The files of a model folder, without saved faces and keypoints among adapters."""
    try:
        files = folder_paths.get_filename_list(name)
    except FileNotFoundError:  # the host's cache has a folder that was removed since
        files = folder_paths.get_filename_list_(name)[0]
    return [file for file in files if name != MODELS or Path(file).parts[0] not in _NOT_WEIGHTS]


def file_choices(*names: str) -> list[str]:
    """The files of some model folders in this order, without duplicates, as options of a combo."""
    return list(dict.fromkeys(file for name in names for file in list_files(name))) or [NO_FILES]


def find_file(name: str, file: str) -> Path:
    """The full path of a listed file. Raises InputError with the folders searched."""
    if not isinstance(file, str):  # ComfyUI checks neither linked values nor those that a node validates itself
        raise InputError(f"A file name is needed; found {reprlib.repr(file)}. Choose a file from the list.")
    path = folder_paths.get_full_path(name, file)
    if path is not None:
        return Path(path)
    searched = ", ".join(folder_paths.get_folder_paths(name))
    if file.startswith(NO_FILES):
        raise InputError(
            f"There are no files yet. Looked in {searched}. {_FIRST_FILE_HINTS[name]} Then press R to refresh "
            "the lists."
        )
    raise InputError(f'There is no file "{file}". Looked in {searched}. Put it there and press R to refresh the lists.')


def check_listed(name: str, file: str | None) -> bool | str:
    """For validate_inputs of a node: True, or the message of ``find_file``. file: None if it is linked."""
    try:
        return file is None or bool(find_file(name, file))
    except InputError as error:
        return str(error)


def fingerprint(name: str, file: str | None) -> tuple[tuple[str, int], ...]:
    """What fingerprint_inputs of a node answers: it changes with the file, or with any of the folder if a link brings
    the name.
    """
    looked_at = [each for each in list_files(name) if _exists(name, each)] if file is None else [file]
    return tuple((each, find_file(name, each).stat().st_mtime_ns) for each in sorted(looked_at))


def _exists(name: str, file: str) -> bool:
    """Whether a listed file is there; a link may lead nowhere."""
    return folder_paths.get_full_path(name, file) is not None


def model_folders(name: str) -> list[str]:
    """The host's folders for these files; new ones are written to the first."""
    return folder_paths.get_folder_paths(name)
