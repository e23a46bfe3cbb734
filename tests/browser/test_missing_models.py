"""What ComfyUI's page offers a user who opens a shipped workflow without its model files."""

import json

from tests.browser.conftest import ROOT

FILES = ("v1-5-pruned-emaonly-fp16.safetensors", "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors")


def test_opening_a_workflow_offers_the_missing_files_for_download(graph, setting, save_picture):
    from browser import load_workflow

    page = graph.page
    setting("Comfy.Workflow.ShowMissingModelsWarning", True)
    load_workflow(page, json.loads((ROOT / "workflows" / "one_person.json").read_text(encoding="utf-8")))
    dialog, summary = page.get_by_role("dialog"), page.get_by_role("button", name="View details")
    dialog.or_(summary).first.wait_for()
    if summary.is_visible():  # later interfaces have a panel
        summary.click()
    for name in FILES:
        page.get_by_text(name).first.wait_for()
    save_picture("missing_models")
    assert page.get_by_role("button", name="Download").count() >= len(FILES)
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
