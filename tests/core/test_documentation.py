"""README, CONTRIBUTING, CHANGELOG and translations, as far as they can be checked without ComfyUI."""

import json
import re
from itertools import pairwise

import pytest

from tests.documents import LOCALES, ROOT, keys, locale, rows, section

PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/golden/README.md"]
COMMANDS = ("python scripts/demo.py", "python scripts/test.py")
CHINESE = re.compile("[\u4e00-\u9fff]")


def texts(tree):
    """All strings of a nested dictionary."""
    return [tree] if isinstance(tree, str) else [text for branch in tree.values() for text in texts(branch)]


def links(page):
    """Targets of a page's relative links, without anchors."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link.split("#")[0] for link in found if "://" not in link and not link.startswith("#")]


@pytest.mark.parametrize("file", ["nodeDefs.json", "main.json"])
def test_the_chinese_translation_has_every_text_and_no_other(file):
    assert keys(locale("zh", file)) == keys(locale("en", file))


def test_every_description_and_tooltip_is_translated():
    nodes = locale("zh", "nodeDefs.json").values()
    slots = [slot for node in nodes for side in ("inputs", "outputs") for slot in node[side].values()]
    sentences = [node["description"] for node in nodes] + [slot["tooltip"] for slot in slots]
    assert [sentence for sentence in sentences if not CHINESE.search(sentence)] == []


@pytest.mark.parametrize("file", sorted(LOCALES.glob("*/*.json")), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_no_text_has_characters_that_comfyuis_translations_read_as_commands(file):
    found = texts(json.loads(file.read_text(encoding="utf-8")))
    assert [text for text in found if set(text) & set("@{}|")] == []


def test_the_readme_begins_with_both_commands():
    opening = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## ")[0]
    assert [command for command in COMMANDS if command not in opening] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_scripts_named_in_commands_exist(page):
    scripts = re.findall(r"python (scripts/\S+\.py)", (ROOT / page).read_text(encoding="utf-8"))
    assert scripts
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_between_files_lead_somewhere(page):
    assert [link for link in links(page) if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_the_readme_explains_every_dependency():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = re.findall(r'"([\w>=.-]+)"', re.search(r"^dependencies = \[(.*?)\]", project, re.M | re.S)[1])
    listed = rows(section((ROOT / "README.md").read_text(encoding="utf-8"), "Dependencies"))
    assert sorted(row[0].strip("`") for row in listed) == sorted(dependencies)


def test_the_readme_says_under_which_name_to_keep_a_file_that_downloads_under_another():
    """ComfyUI's page leaves downloads to the browser, which names a file by the end of its address."""
    workflows = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "workflows").glob("*.json")]
    nodes = [node for workflow in workflows for node in workflow["nodes"]]
    models = [model for node in nodes for model in node["properties"].get("models", [])]
    downloads = {(model["url"].rsplit("/", 1)[1], model["name"]) for model in models}
    renamed = [(saved, name) for saved, name in downloads if saved != name]
    assert renamed
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert [names for names in renamed if "`{}` to `{}`".format(*names) not in readme] == []


def test_the_changelog_begins_with_the_version_of_the_project():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]
    assert re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[0] == version


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_tables_are_whole(page):
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    broken = [
        after
        for before, after in pairwise(lines)
        if before.startswith("|") and after.startswith("|") and before.count("|") != after.count("|")
    ]
    assert broken == []


def test_every_module_of_the_core_has_its_place_in_the_house():
    house = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    core = ROOT / "dynamicid_core"
    modules = {path.name for folder in (core, core / "comfy_host") for path in folder.glob("[!_]*.py")}
    assert {name for name in modules if not re.search(rf"\b{re.escape(name)}", house)} == set()
