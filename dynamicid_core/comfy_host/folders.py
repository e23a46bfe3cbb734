"""The pack's folders below ComfyUI's models/, and the files in them."""

from pathlib import Path

import folder_paths

from ..errors import InputError

MODELS, IP_ADAPTERS, FACE_ANALYSIS = "dynamicid", "ipadapter", "insightface"
FACES, KEYPOINTS = "dynamicid_faces", "dynamicid_keypoints"
_NO_WEIGHTS = ("faces", "keypoints")  # folders inside the folder of weights
NO_FILES = "(no files yet)"
"""What a list shows that would be empty: the interface would leave the input out, and the host say nothing but that."""
_FIRST_FILES = {
    MODELS: "Put a DynamicID file there; the authors' are at https://huggingface.co/meteorite2023/DynamicID.",
    FACES: "Encode Face and Save Face make one.",
    KEYPOINTS: "Face Keypoints or Pose Keypoints, and Save Keypoints, make one.",
}


def register_model_folders() -> None:
    """Adds the pack's folders below models/, keeping what extra_model_paths.yaml or other packs have set for them."""
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
    """The files of a model folder; saved faces and keypoints are no adapters."""
    try:
        files = folder_paths.get_filename_list(name)
    except FileNotFoundError:  # the host's cache remembers a folder that has been removed since
        files = folder_paths.get_filename_list_(name)[0]
    return [file for file in files if name != MODELS or Path(file).parts[0] not in _NO_WEIGHTS]


def choices(*names: str) -> list[str]:
    """The files of one model folder, then what others have beside them, for a list to choose from."""
    return list(dict.fromkeys(file for name in names for file in list_files(name))) or [NO_FILES]


def find_file(name: str, file: str) -> Path:
    """The full path of a listed file. Raises InputError that names the folders searched."""
    path = folder_paths.get_full_path(name, file)
    if path is not None:
        return Path(path)
    searched = ", ".join(folder_paths.get_folder_paths(name))
    if file.startswith(NO_FILES):
        raise InputError(
            f"There are no files yet. Looked in {searched}. {_FIRST_FILES[name]} Then press R to refresh the lists."
        )
    raise InputError(f'There is no file "{file}". Looked in {searched}. Put it there and press R to refresh the lists.')


def missing(name: str, file: str | None) -> bool | str:
    """What validate_inputs of a node answers: True, or the message of ``find_file``. file: None if a link brings it."""
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
    """Where the host looks for these files; the first is where new ones are written."""
    return folder_paths.get_folder_paths(name)
