"""InsightFace packs: real ones, damaged ones, and what is reported about them."""

import shutil
import sys
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from unittest import mock

import pytest

from dynamicid_core import face_packs
from dynamicid_core.errors import InputError
from dynamicid_core.face_packs import choose_providers, find_pack, find_packs, open_pack, pack_models
from tests import photos


def test_packs_are_found_at_any_depth_under_any_file_names(tmp_path, pack):
    for nested in ("models/buffalo_l", "antelopev2/antelopev2"):
        (tmp_path / nested).mkdir(parents=True)
    for i, file in enumerate(sorted(pack.glob("*.onnx"))):
        shutil.copy(file, tmp_path / "models" / "buffalo_l" / f"renamed {i}.onnx")
    (tmp_path / "antelopev2" / "antelopev2" / "x.onnx").touch()
    packs = find_packs([tmp_path])
    assert packs == {
        "buffalo_l": tmp_path / "models" / "buffalo_l",
        "antelopev2": tmp_path / "antelopev2" / "antelopev2",
    }
    assert len(open_pack(packs["buffalo_l"], "auto").detect(photos.astronaut())) == 1


def test_single_models_of_other_tools_beside_packs_are_no_pack(tmp_path):
    (tmp_path / "models" / "buffalo_l").mkdir(parents=True)
    for file in ("inswapper_128.onnx", "models/buffalo_l/x.onnx"):
        (tmp_path / file).touch()
    assert list(find_packs([tmp_path])) == ["buffalo_l"]
    assert find_pack(tmp_path / "models" / "buffalo_l") == tmp_path / "models" / "buffalo_l"


@pytest.mark.parametrize("apart", [False, True], ids=["beside the models", "in a folder of their own"])
def test_what_macos_keeps_beside_models_is_no_model(tmp_path, caplog, apart, pack):
    copied = tmp_path / "antelopev2" / "antelopev2"
    companions = tmp_path / "antelopev2" / "__MACOSX" / "antelopev2" if apart else copied
    for folder in {copied, companions}:
        folder.mkdir(parents=True)
    for file in pack.glob("*.onnx"):
        shutil.copy(file, copied)
        (companions / f"._{file.name}").write_bytes(b"\0\5\x16\7" + bytes(100))
    if apart:
        shutil.copy(next(pack.glob("*.onnx")), companions / "stray.onnx")
    assert find_packs([tmp_path]) == {"antelopev2": copied}
    assert pack_models(copied) == sorted(copied / file.name for file in pack.glob("*.onnx"))
    assert len(open_pack(copied, "CPU").detect(photos.astronaut())) == 1
    assert caplog.text == ""


def test_a_folder_with_nothing_but_macos_companions_is_no_pack(tmp_path):
    (tmp_path / "buffalo_l").mkdir()
    (tmp_path / "buffalo_l" / "._det.onnx").touch()
    assert find_packs([tmp_path]) == {}


def test_one_pack_is_asked_for_where_a_folder_holds_two(tmp_path):
    for name in ("buffalo_l", "antelopev2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.onnx").touch()
    with pytest.raises(InputError, match="holds several InsightFace packs: antelopev2, buffalo_l"):
        find_pack(tmp_path)


def test_a_model_that_insightface_does_not_know_is_left_out(tmp_path, caplog, pack):
    import onnx

    for file in pack.glob("*.onnx"):
        shutil.copy(file, tmp_path)
    numbers = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "stranger", numbers[:1], numbers[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "a_stranger.onnx")
    with caplog.at_level("WARNING"):
        analysis = open_pack(tmp_path, "CPU")
    assert "a_stranger.onnx is left out" in caplog.text
    assert len(analysis.detect(photos.astronaut())) == 1


@pytest.mark.parametrize(("missing", "task"), [("scrfd*", "detection"), ("w600k*", "recognition")])
def test_a_pack_without_a_needed_model_says_which(tmp_path, missing, task, pack):
    for file in pack.glob("*.onnx"):
        if not file.match(missing):
            shutil.copy(file, tmp_path)
    with pytest.raises(InputError, match=f"has no {task} model.* Use a whole pack, such as buffalo_l"):
        open_pack(tmp_path, "CPU")


def test_half_of_a_pack_that_can_be_downloaded_says_how_to_download_it_again(tmp_path, pack):
    folder = tmp_path / "buffalo_s"
    folder.mkdir()
    shutil.copy(next(pack.glob("scrfd*")), folder)
    with pytest.raises(InputError, match=r"no recognition model.* Delete the \.onnx files in .*buffalo_s and"):
        open_pack(folder, "CPU")


def test_a_pack_without_keypoints_still_finds_people(tmp_path, pack):
    for pattern in ("scrfd*", "w600k*"):
        shutil.copy(next(pack.glob(pattern)), tmp_path)
    analysis = open_pack(tmp_path, "CPU")
    face = analysis.choose(photos.astronaut(), "largest", 0).chosen
    assert face.keypoints is None
    assert analysis.embed(photos.astronaut(), face).shape == (512,)


def test_a_cut_off_model_file_is_named(tmp_path, pack):
    for file in pack.glob("*.onnx"):
        (tmp_path / file.name).write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"\w+\.onnx could not be opened.* Delete the .onnx files in .*again"):
        open_pack(tmp_path, "CPU")


def test_a_provider_that_is_not_installed_falls_back_to_the_cpu(caplog):
    import onnxruntime

    absent = next(
        name for name, key in face_packs.PROVIDERS.items() if key not in onnxruntime.get_available_providers()
    )
    assert choose_providers(absent) == ["CPUExecutionProvider"]
    assert "using the CPU" in caplog.text


def test_an_unknown_provider_is_refused():
    with pytest.raises(InputError, match='"TPU" is not an execution provider'):
        choose_providers("TPU")


@pytest.fixture
def not_imported_yet():
    """As in a process that has not opened a pack yet. Modules that the test adds are removed after it."""
    with mock.patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.split(".")[0] in ("insightface", "onnxruntime")]:
            del sys.modules[name]
        yield


class Finder:
    """Finds one package instead of Python's own finders."""

    def __init__(self, package, answer):
        self.package, self.answer = package, answer

    def find_spec(self, name, *_):
        return self.answer() if name == self.package else None


REINSTALL = (
    r"python -m pip uninstall -y onnxruntime onnxruntime-gpu onnxruntime-directml, then: python -m pip install "
    r"onnxruntime \(with the Python that runs ComfyUI\); for CUDA, use onnxruntime-gpu\."
)


def test_a_machine_without_insightface_is_told_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "insightface.model_zoo", None)
    with pytest.raises(InputError, match=r"needs the Python package .*insightface.* pip install"):
        open_pack(tmp_path, "CPU")


def test_a_package_that_is_there_and_does_not_load_says_why(monkeypatch, not_imported_yet, tmp_path):
    def fail():
        raise ImportError("libGL.so.1: cannot open shared object file", name="cv2")

    monkeypatch.setattr(sys, "meta_path", [Finder("insightface.model_zoo", fail), *sys.meta_path])
    with pytest.raises(InputError, match=r"package cv2, which is installed but does not load: libGL\.so\.1"):
        open_pack(tmp_path, "CPU")


def test_a_machine_without_onnxruntime_is_not_told_that_insightface_is_broken(not_imported_yet, tmp_path):
    sys.modules["onnxruntime"] = None
    with pytest.raises(InputError, match=rf"package onnxruntime, which is not installed\. Run: {REINSTALL}"):
        open_pack(tmp_path, "CPU")


def test_what_is_left_of_an_onnxruntime_that_was_removed_is_reported(monkeypatch, not_imported_yet, tmp_path):
    (tmp_path / "onnxruntime" / "capi").mkdir(parents=True)
    leftover = Finder("onnxruntime", lambda: PathFinder.find_spec("onnxruntime", [str(tmp_path)]))
    monkeypatch.setattr(sys, "meta_path", [leftover, *sys.meta_path])
    message = rf"package onnxruntime, which is installed but does not load: .*has no attribute.*Run: {REINSTALL}"
    with pytest.raises(InputError, match=message):
        open_pack(tmp_path, "CPU")


def test_an_onnxruntime_whose_library_does_not_load_is_reported(monkeypatch, not_imported_yet, tmp_path):
    (tmp_path / "onnxruntime" / "capi").mkdir(parents=True)
    (tmp_path / "onnxruntime" / "__init__.py").write_text("from onnxruntime.capi.onnxruntime_pybind11_state import x")
    library = f"onnxruntime_pybind11_state{EXTENSION_SUFFIXES[0]}"
    (tmp_path / "onnxruntime" / "capi" / library).write_bytes(b"no library")
    broken = Finder("onnxruntime", lambda: PathFinder.find_spec("onnxruntime", [str(tmp_path)]))
    monkeypatch.setattr(sys, "meta_path", [broken, *sys.meta_path])
    message = rf"package onnxruntime, which is installed but does not load: .*[^.]\. Run: {REINSTALL}.*Visual C"
    with pytest.raises(InputError, match=message):
        open_pack(tmp_path, "CPU")


@pytest.mark.parametrize("error", [ValueError("numpy.dtype size changed"), TypeError("Descriptors cannot be created")])
def test_packages_that_do_not_fit_each_other_are_reported(monkeypatch, not_imported_yet, tmp_path, error):
    def fail():
        raise error

    monkeypatch.setattr(sys, "meta_path", [Finder("insightface.model_zoo", fail), *sys.meta_path])
    with pytest.raises(InputError, match=f"package insightface, which is installed but does not load: {error}"):
        open_pack(tmp_path, "CPU")


def test_a_provider_that_does_not_start_is_not_said_to_be_used(monkeypatch, caplog, pack):
    monkeypatch.setattr(face_packs, "choose_providers", lambda _: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    caplog.set_level("INFO")
    open_pack(pack, "CUDA")
    assert "could not start CUDAExecutionProvider" in caplog.text
    assert "opened on CPUExecutionProvider" in caplog.text


def test_of_two_models_for_one_task_the_known_one_is_taken(tmp_path, caplog, pack):
    for file in pack.glob("*.onnx"):
        shutil.copy(file, tmp_path)
    shutil.copy(next(pack.glob("w600k*")), tmp_path / "a_copy.onnx")
    with caplog.at_level("WARNING"):
        analysis = open_pack(tmp_path, "CPU")
    assert analysis.recognition in face_packs.RECOGNITION_PACKS
    assert "a_copy.onnx is left out: the pack has a model for recognition already" in caplog.text


def test_a_pack_behind_a_link_is_found(tmp_path):
    (tmp_path / "disk" / "buffalo_l").mkdir(parents=True)
    (tmp_path / "disk" / "buffalo_l" / "det.onnx").touch()
    (tmp_path / "models").mkdir()
    try:
        (tmp_path / "models" / "buffalo_l").symlink_to(tmp_path / "disk" / "buffalo_l", target_is_directory=True)
    except OSError as error:  # Windows requires a privilege for it
        pytest.skip(f"no links can be made here: {error}")
    assert list(find_packs([tmp_path / "models"])) == ["buffalo_l"]


def test_links_that_lead_back_up_do_not_multiply_packs(tmp_path):
    (tmp_path / "buffalo_l").mkdir()
    (tmp_path / "buffalo_l" / "det.onnx").touch()
    try:
        for name in ("a", "b"):
            (tmp_path / name).symlink_to(tmp_path, target_is_directory=True)
    except OSError as error:  # Windows requires a privilege for it
        pytest.skip(f"no links can be made here: {error}")
    assert list(find_packs([tmp_path])) == ["buffalo_l"]


def test_two_packs_of_one_name_are_distinguished_by_their_folders(tmp_path):
    for place in ("a/pack", "b/pack"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "det.onnx").touch()
    assert find_packs([tmp_path]) == {"pack": tmp_path / "a" / "pack", "b/pack": tmp_path / "b" / "pack"}


def test_a_face_below_the_threshold_does_not_count(pack):
    assert len(open_pack(pack, "CPU").detect(photos.astronaut())) == 1
    assert open_pack(pack, "CPU", threshold=0.95).detect(photos.astronaut()) == []


def test_models_are_opened_with_the_provider_asked_for(monkeypatch, pack):
    asked, get_model = [], face_packs._import_insightface()

    def listening(file, **given):
        asked.append(given["providers"])
        return get_model(file, **given)

    monkeypatch.setattr(face_packs, "_import_insightface", lambda: listening)
    open_pack(pack, "CPU")
    assert asked == [["CPUExecutionProvider"]] * len(list(pack.glob("*.onnx")))


@pytest.mark.parametrize("asked", ["auto", "CUDA"])
def test_cuda_is_taken_where_there_is_one(monkeypatch, asked):
    import onnxruntime

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    assert choose_providers(asked) == both


def test_nothing_is_said_of_a_cpu_that_nobody_asked_to_be_more(caplog):
    choose_providers("auto")
    assert not caplog.text


@pytest.fixture
def installed(monkeypatch):
    """The packages that pip has installed."""
    packages = set()

    def distribution(name):
        if name not in packages:
            raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    return packages


BOTH = [
    ("onnxruntime-gpu", "CUDA", "CUDAExecutionProvider"),
    ("onnxruntime-directml", "DirectML", "DmlExecutionProvider"),
]


@pytest.mark.parametrize(("package", "name", "lost"), BOTH)
@pytest.mark.parametrize("automatic", [True, False])
def test_an_onnxruntime_that_took_another_ones_place_is_reported(caplog, installed, package, name, lost, automatic):
    installed |= {"onnxruntime", package}
    assert choose_providers("auto" if automatic else name) == ["CPUExecutionProvider"]
    assert f"Both onnxruntime and {package} are installed, so no node pack can use {lost}." in caplog.text
    assert "pip uninstall -y onnxruntime onnxruntime-gpu onnxruntime-directml, then: " in caplog.text
    assert f"python -m pip install {package} (with" in caplog.text


@pytest.mark.parametrize("there", [{"onnxruntime"}, {"onnxruntime-gpu"}, set()])
def test_one_onnxruntime_alone_is_nothing_to_speak_of(caplog, installed, there):
    installed |= there
    choose_providers("auto")
    assert caplog.text == ""


def test_two_onnxruntimes_are_nothing_to_speak_of_where_the_provider_is_there(monkeypatch, caplog, installed):
    import onnxruntime

    installed |= {"onnxruntime", "onnxruntime-gpu"}
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    choose_providers("auto")
    assert caplog.text == ""
