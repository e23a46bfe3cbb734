"""Files that were replaced under their names are read again."""

import os

import pytest

from tests.host.rig import driving, node, run


@pytest.mark.parametrize("part", ["adapter", "imr", "keypoint_encoder"])
def test_a_replaced_weight_file_is_loaded_again(editor, models, part):
    files = {"adapter": "SAA_tiny.bin", "imr": "IMR_tiny.bin", "keypoint_encoder": "kpe.bin"}
    before = node("DynamicIDLoader").fingerprint_inputs(**files)
    os.utime(models / "dynamicid" / files[part], (1, 1))
    assert node("DynamicIDLoader").fingerprint_inputs(**files) != before


def test_a_pack_with_a_replaced_model_is_opened_again(face_analysis):
    loader = node("DynamicIDFaceAnalysisLoader")
    before = loader.fingerprint_inputs(pack="vectron")
    os.utime(face_analysis.recognition_file, (1, 1))
    assert loader.fingerprint_inputs(pack="vectron") != before


def test_replaced_keypoints_are_read_again(models):
    file = run("DynamicIDSaveKeypoints", keypoints=driving(), name="replaced")[0]
    before = node("DynamicIDLoadKeypoints").fingerprint_inputs(name=file)
    os.utime(models / "dynamicid" / "keypoints" / file, (1, 1))
    assert node("DynamicIDLoadKeypoints").fingerprint_inputs(name=file) != before
