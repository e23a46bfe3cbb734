"""ComfyUI's Templates window offers the shipped workflows, as the README says."""

from base_directory import PACK_FOLDER

from tests.browser.conftest import ROOT

WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


def test_templates_show_every_workflow_with_its_picture(graph, save_picture):
    page = graph.page
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    dialog = page.get_by_role("dialog")
    dialog.get_by_text(PACK_FOLDER).first.click()

    for name in WORKFLOWS:
        # Its picture, above it, may only be loaded once it is visible.
        dialog.get_by_text(name, exact=True).first.evaluate("title => title.scrollIntoView({block: 'center'})")
        picture = dialog.get_by_alt_text(name, exact=True).first
        picture.wait_for()
        assert picture.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 0
    save_picture("templates")

    dialog.get_by_text("one_person", exact=True).first.scroll_into_view_if_needed()
    dialog.get_by_text("one_person", exact=True).first.click()
    dialog.wait_for(state="detached")
    page.wait_for_function("() => window.app.graph.findNodesByType('DynamicIDEncodeFace').length === 1")
